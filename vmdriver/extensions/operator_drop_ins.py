"""Adds init drop-ins and environment from the operator's configuration; the example.

extensions = ["operator-drop-ins"]

[extension.operator-drop-ins]
directory = "/etc/vmdriver/init.d"    # every regular file in it, sorted by name
environment = { HTTPS_PROXY = "http://proxy.example:3128" }
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vmdriver.extension import HookContext, LifecycleExtension, PlanDraft, Refused

_LARGEST = 256 * 1024


class Table(BaseModel):
    """The extension's configuration table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    directory: Path | None = None
    environment: Mapping[str, str] = {}


class OperatorDropIns(LifecycleExtension):
    """Active for every sandbox."""

    name: ClassVar[str] = "operator-drop-ins"

    async def configure_launch(self, context: HookContext, draft: PlanDraft) -> None:
        """Read the directory anew at each launch, so that a change needs no restart."""
        table = self._table(context.config)
        for name, value in table.environment.items():
            draft.set_environment(name, value)
        if table.directory is not None:
            for name, contents in await asyncio.to_thread(_read, table.directory):
                draft.add_drop_in(name, contents)

    @staticmethod
    def _table(config: Mapping[str, Any]) -> Table:
        try:
            return Table.model_validate(config)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise Refused(
                f"[extension.operator-drop-ins] {key}: {first['msg']}"
            ) from error


def _read(directory: Path) -> list[tuple[str, str]]:
    try:
        files = sorted(path for path in directory.iterdir() if path.is_file())
        for path in files:
            if path.stat().st_size > _LARGEST:
                raise Refused(
                    f"init drop-in {path} is larger than {_LARGEST // 1024} KiB"
                )
        return [(path.name, path.read_text()) for path in files]
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(
            f"init drop-ins in {directory} cannot be read: {error}"
        ) from error
