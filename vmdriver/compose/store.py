"""What a composed driver has on disk: a directory per sandbox with its record, its ledger and
its extensions' own directories.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vmdriver.errors import StorageError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.ledger import Ledger
from vmdriver.lifecycle.extending.subject import Activation, Subject, view_of
from vmdriver.lifecycle.ports.host import Guard, no_crash_point
from vmdriver.model.spec import Frozen, Resources
from vmdriver.storage import files
from vmdriver.storage.sandboxes.journal import FileJournal

_log = logging.getLogger(__name__)
_RECORD = "record.json"


class Stage(StrEnum):
    """How far a sandbox is, as far as extensions are concerned."""

    CREATING = "creating"
    """The base may or may not have been asked; whoever asked us has no answer yet."""
    PRESENT = "present"
    DELETING = "deleting"
    GONE = "gone"
    """The base does not have it any more; something of an extension's is still held."""


class Record(Frozen):
    """One sandbox. Never holds the token or the environment."""

    schema_version: int = 1
    id: str
    name: str
    workspace: str
    image: str
    labels: Mapping[str, str]
    resources: Resources
    active: tuple[str, ...]
    parameters: Mapping[str, Mapping[str, Any]]
    stage: Stage = Stage.CREATING
    up: bool = False
    """A run was begun, and its end has not been told yet."""
    ready_told: bool = False

    def subject(
        self, ledger: Ledger | None, trace: Mapping[str, str] | None
    ) -> Subject:
        """As extensions see it."""
        activation = Activation(self.active, self.parameters)
        return Subject(view_of(self), activation, ledger, trace or {})


class Store:
    """All of them, below one directory."""

    def __init__(
        self, root: Path, threads: Threads, crash_point: Guard = no_crash_point
    ) -> None:
        self._root = root / "sandboxes"
        self._threads = threads
        self._crash_point = crash_point

    def open(self) -> list[Record]:
        """Make the directory; every record in it. What was never accepted is removed.
        StorageError for one that cannot be read.
        """
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = []
        for directory in sorted(self._root.iterdir()):
            path = directory / _RECORD
            if not path.exists():
                files.remove_tree(directory)
                continue
            try:
                found.append(Record.model_validate_json(path.read_bytes()))
            except ValidationError as error:
                raise StorageError(
                    f"the record {path} cannot be read",
                    detail=str(error),
                    resolution="it is of another version, or damaged; move its "
                    "directory away to start without it",
                ) from error
        return found

    async def save(self, record: Record) -> None:
        """Durably."""
        await self._threads.run(self._save, record)

    def _save(self, record: Record) -> None:
        directory = self._root / record.id
        directory.mkdir(mode=0o700, exist_ok=True)
        files.replace(directory / _RECORD, record.model_dump_json().encode())

    async def remove(self, sandbox_id: str) -> None:
        """With all that extensions kept for it. The record goes first."""
        await self._threads.run(self._remove, self._root / sandbox_id)

    @staticmethod
    def _remove(directory: Path) -> None:
        (directory / _RECORD).unlink(missing_ok=True)
        files.remove_tree(directory)

    def ledger(self, sandbox_id: str) -> Ledger:
        """What is held for it."""
        journal = FileJournal(self._root / sandbox_id / "ledger.jsonl", self._threads)
        return Ledger(journal, self._crash_point)

    async def extension_directory(self, sandbox_id: str, name: str) -> Path:
        """An extension's own directory, made if it is not there."""
        path = self._root / sandbox_id / "extensions" / name
        await self._threads.run(
            lambda: path.mkdir(mode=0o700, parents=True, exist_ok=True)
        )
        return path
