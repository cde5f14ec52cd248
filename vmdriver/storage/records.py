"""Records on disk: one directory per sandbox, there from the moment a create is
accepted until its delete is done.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from pydantic import SecretStr, ValidationError

from vmdriver.errors import AlreadyExists, StorageError
from vmdriver.host.threads import Pool
from vmdriver.model.record import SandboxRecord
from vmdriver.storage import files
from vmdriver.storage.layout import Layout

_log = logging.getLogger(__name__)
_HALF_MADE = ".new-"


class RecordStore:
    """Implements lifecycle.ports.Records."""

    def __init__(self, layout: Layout, pool: Pool) -> None:
        self._layout = layout
        self._pool = pool
        self._unreadable: list[str] = []

    def unreadable(self) -> list[str]:
        """See ports.Records."""
        return list(self._unreadable)

    async def create(self, record: SandboxRecord, token: SecretStr | None) -> None:
        """Make the sandbox's directory with record and token, all at once.
        AlreadyExists if it is there.
        """
        await self._pool.run(self._create, record, token)

    def _create(self, record: SandboxRecord, token: SecretStr | None) -> None:
        target = self._layout.sandbox(record.id)
        if target.directory.exists():
            raise AlreadyExists(f"sandbox {record.id} exists")
        part = self._layout.sandboxes / f"{_HALF_MADE}{record.id}"
        try:
            files.remove_tree(part)
            part.mkdir(mode=0o711)
            part.chmod(0o711)
            files.write_new(
                part / target.record.name, record.model_dump_json().encode()
            )
            if token is not None:
                files.write_new(
                    part / target.token.name, token.get_secret_value().encode()
                )
            files.sync_directory(part)
            part.rename(target.directory)
            files.sync_directory(self._layout.sandboxes)
        except OSError as error:
            files.remove_tree(part)
            raise StorageError(
                f"sandbox {record.id} cannot be stored: {error.strerror}",
                detail=str(error),
            ) from error

    async def save(self, record: SandboxRecord) -> None:
        """Replace the record, durably. The directory must be there."""
        await self._pool.run(self._save, record)

    def _save(self, record: SandboxRecord) -> None:
        try:
            files.replace(
                self._layout.sandbox(record.id).record,
                record.model_dump_json().encode(),
            )
        except OSError as error:
            raise StorageError(
                f"the record of sandbox {record.id} cannot be written: "
                f"{error.strerror}",
                detail=str(error),
                resolution="check free space and permissions of the state directory",
            ) from error

    async def load_all(self) -> list[SandboxRecord]:
        """Every record. Half-made directories are removed; unreadable records are left
        alone and logged.
        """
        return await self._pool.run(self._load_all)

    def _load_all(self) -> list[SandboxRecord]:
        found = []
        self._unreadable = []
        for directory in sorted(self._layout.sandboxes.iterdir()):
            if directory.name.startswith(_HALF_MADE):
                files.remove_tree(directory)
                continue
            record = self._load(directory)
            if record is not None:
                found.append(record)
            else:
                self._unreadable.append(directory.name)
        return found

    @staticmethod
    def _load(directory: Path) -> SandboxRecord | None:
        try:
            record = SandboxRecord.model_validate_json(
                (directory / "record.json").read_bytes()
            )
        except (OSError, ValidationError, json.JSONDecodeError) as error:
            _log.error(
                "record of %s cannot be read and is left alone: %s",
                directory.name,
                error,
            )
            return None
        if record.id != directory.name:
            _log.error(
                "record in %s belongs to %s and is left alone",
                directory.name,
                record.id,
            )
            return None
        return record

    async def token(self, sandbox_id: str) -> SecretStr | None:
        """The sandbox's token, or None if the gateway gave none."""
        return await self._pool.run(self._token, sandbox_id)

    def _token(self, sandbox_id: str) -> SecretStr | None:
        try:
            return SecretStr(self._layout.sandbox(sandbox_id).token.read_text())
        except FileNotFoundError:
            return None

    async def remove(self, sandbox_id: str) -> None:
        """Remove the directory with everything in it; absent is fine. The last step of
        a delete.
        """
        await self._pool.run(self._remove, sandbox_id)

    def _remove(self, sandbox_id: str) -> None:
        directory = self._layout.sandbox(sandbox_id).directory
        if directory.is_symlink():
            raise StorageError(f"{directory.name} is a link and is left alone")
        if not directory.exists():
            return
        # First out of sight, so that a crash in the middle leaves a half-made
        # directory, not a half record.
        part = directory.with_name(f"{_HALF_MADE}{sandbox_id}")
        files.remove_tree(part)
        directory.rename(part)
        files.remove_tree(part)
