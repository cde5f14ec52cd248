"""Writes a JSON line for every call of an extension: what, for whom, how long, how it ended.

extensions = ["audit-log", ...]

[extension.audit-log]
path = "/var/log/vmdriver/extensions.jsonl"     # made with mode 0600, its folder with 0700
"""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from vmdriver.extension import Call, Context, Extension


class Table(BaseModel):
    """The extension's configuration table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Path


class AuditLog(Extension):
    """Active for every sandbox; sees the calls of every extension, its own too."""

    name: ClassVar[str] = "audit-log"
    configuration = Table
    timeout_s = 5.0

    async def after_create(self, context: Context) -> None:
        """So that sandboxes appear even where no other extension takes part."""

    async def after_delete(self, context: Context) -> None:
        """As above."""

    async def observe(self, call: Call, config: Table) -> None:
        """One line; opened anew each time, so that a rotated file is let go."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "actor": call.extension,
            "phase": call.phase,
            "sandbox": call.sandbox_id,
            "workspace": call.workspace,
            "milliseconds": round(call.seconds * 1e3, 3),
            "outcome": call.error or "ok",
        }
        await asyncio.to_thread(_append, config.path, json.dumps(line) + "\n")


def _append(path: Path, line: str) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
