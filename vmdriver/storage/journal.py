"""An append-only file of JSON lines: durable before `append` returns, readable after a
torn last write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmdriver.errors import StorageError
from vmdriver.host.threads import Pool
from vmdriver.storage import files


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """Every whole line of a journal; a torn last line was never acknowledged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        return [json.loads(line) for line in data.split(b"\n")[:-1] if line]
    except json.JSONDecodeError as error:
        raise StorageError(
            f"ledger {path} is damaged: {error}",
            resolution="look at the file; what it names may have to be removed by hand",
        ) from error


class FileJournal:
    """Implements lifecycle.ports.Journal on one file."""

    def __init__(self, path: Path, pool: Pool) -> None:
        self._path = path
        self._pool = pool

    def read(self) -> list[Mapping[str, Any]]:
        """See `read_lines`."""
        return read_lines(self._path)

    async def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line and wait until it is on disk."""
        await self._pool.run(self._append, entry)

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise StorageError(
                f"the ledger cannot be written: {error.strerror}", detail=str(error)
            ) from error
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                size = self._cut_torn_line(descriptor, size)
            os.pwrite(descriptor, line, size)
            os.fdatasync(descriptor)
            if size == 0:
                files.sync_directory(self._path.parent)
        except OSError as error:
            raise StorageError(
                f"the ledger cannot be written: {error.strerror}", detail=str(error)
            ) from error
        finally:
            os.close(descriptor)

    @staticmethod
    def _cut_torn_line(descriptor: int, size: int) -> int:
        keep = os.pread(descriptor, size, 0).rfind(b"\n") + 1
        os.ftruncate(descriptor, keep)
        return keep

    async def rewrite(self, entries: list[Mapping[str, Any]]) -> None:
        """Replace the whole file, as one step: compaction."""
        data = b"".join(
            json.dumps(e, separators=(",", ":")).encode() + b"\n" for e in entries
        )
        await self._pool.run(files.replace, self._path, data)
