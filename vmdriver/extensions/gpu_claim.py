"""Claims one of this host's devices for a sandbox, through files that others understand too.

extensions = ["gpu-claim"]

[extension.gpu-claim]
directory = "/run/gpu-claims"       # made if it is not there
devices = ["0000:3b:00.0", "0000:af:00.0"]

A sandbox takes part when policy has set the label openshell.io/extension.gpu-claim to enabled.
The protocol: a device is free unless DIRECTORY/DEVICE is there; whoever makes that file, in one
step and holding its owner's name, has the device until it removes the file. The driver behind
finds the device in the label gpu-claim, the sandbox in GPU_CLAIM. Passing it through is the
base driver's business.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from vmdriver.extension import Context, Draft, Exhausted, Extension, Hold, OnRequest


class Table(BaseModel):
    """The extension's configuration table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    directory: Path
    devices: tuple[str, ...] = Field(min_length=1)


class GpuClaim(Extension):
    """One device from create to delete."""

    name: ClassVar[str] = "gpu-claim"
    version: ClassVar[str] = "1"
    activation = OnRequest("gpu-claim")
    configuration = Table

    async def before_create(self, context: Context, draft: Draft) -> None:
        """The first that is free. Exhausted when none is."""
        table: Table = context.config
        for device in table.devices:
            path = table.directory / device.replace("/", "_")
            if await asyncio.to_thread(_owner, path) not in {"", context.sandbox.id}:
                continue
            await context.hold("gpu", device, {"path": str(path)})
            if await asyncio.to_thread(_claim, path, context.sandbox.id):
                draft.set_environment("GPU_CLAIM", device)
                draft.set_label("gpu-claim", device)
                return
        raise Exhausted(
            f"all {len(table.devices)} devices of this host are claimed",
            reason="NoDeviceFree",
        )

    async def undo(self, context: Context, hold: Hold) -> None:
        """Only what is ours: another owner may have been faster."""
        path = Path(hold.data["path"])
        if await asyncio.to_thread(_owner, path) == context.sandbox.id:
            await asyncio.to_thread(path.unlink)


def _owner(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _claim(path: Path, owner: str) -> bool:
    """Linked into place with its content: nobody sees an empty claim."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    part.write_text(owner)
    try:
        os.link(part, path)
    except FileExistsError:
        return _owner(path) == owner
    finally:
        part.unlink()
    return True
