"""An append-only file of JSON lines: durable before `append` returns, as it was before when
`append` raises, readable after a torn last write.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vmdriver.errors import StorageError
from vmdriver.host.threads import Threads
from vmdriver.storage import files

_JSON = json.JSONEncoder(separators=(",", ":"))
"""Made once: json.dumps would make one for each line."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_REPAIR = "repair the file or bring it back from a backup, then start the driver again"


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """Every whole line of a journal; a torn last line was never acknowledged. StorageError
    for a file that is damaged or cannot be read.
    """
    try:
        data = files.read(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(
            f"ledger {path} cannot be read: {error.strerror}", resolution=_REPAIR
        ) from error
    lines: list[Mapping[str, Any]] = []
    for number, text in enumerate(data.split(b"\n")[:-1], 1):
        if not text:
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise _damaged(path, number, str(error)) from error
        if not isinstance(line, dict):
            raise _damaged(path, number, "it is no object")
        lines.append(line)
    return lines


def _damaged(path: Path, number: int, why: str) -> StorageError:
    return StorageError(
        f"ledger {path} is damaged in line {number}: {why}", resolution=_REPAIR
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in _NO_SPACE
        raise StorageError(
            f"the ledger cannot be written: {error.strerror or error}",
            detail=str(error),
            reason="DiskFull" if full else None,
            resolution="free space in the state directory"
            if full
            else "check the file system of the state directory",
        ) from error


def _encode(lines: tuple[Mapping[str, Any], ...]) -> bytes:
    return b"".join(_JSON.encode(line).encode() + b"\n" for line in lines)


class FileJournal:
    """Implements lifecycle.ports.host.Journal on one file."""

    def __init__(self, path: Path, threads: Threads) -> None:
        self._path = path
        self._threads = threads
        self._alone = threading.Lock()
        self._certain: int | None = None
        """Not None: a write could not be made durable and not be taken back for certain.
        Only so many bytes from the start count; the next write makes the file anew.
        """

    def read(self) -> list[Mapping[str, Any]]:
        return read_lines(self._path)

    async def append(self, *lines: Mapping[str, Any]) -> None:
        """Add lines and wait until they are on disk. StorageError: then the file is as it
        was, or will be before anything else is written to it.
        """
        await self._threads.run(self._append, _encode(lines))

    def _append(self, data: bytes) -> None:
        with self._alone, _translated():
            descriptor = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                if self._certain is not None:
                    kept = os.pread(descriptor, self._certain, 0)
                    files.replace(self._path, kept + data)
                    self._certain = None
                else:
                    self._append_to(descriptor, data)
            finally:
                os.close(descriptor)

    def _append_to(self, descriptor: int, data: bytes) -> None:
        size = _end_of_whole_lines(descriptor)
        self._certain = size
        try:
            files.write_all(descriptor, data, size)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, size)
                os.fdatasync(descriptor)
                self._certain = None
            raise
        try:
            os.fdatasync(descriptor)
            if size == 0:
                files.sync_directory(self._path.parent)
        except OSError:
            # What is on disk now is not known, and asking again would not tell (fsync(2)
            # reports an error once): the next write makes the file anew.
            with suppress(OSError):
                os.ftruncate(descriptor, size)
            raise
        self._certain = None

    async def rewrite(self, lines: list[Mapping[str, Any]]) -> None:
        await self._threads.run(self._rewrite, _encode(tuple(lines)))

    def _rewrite(self, data: bytes) -> None:
        with self._alone, _translated():
            if data:
                files.replace(self._path, data)
            else:
                self._empty()
            self._certain = None

    def _empty(self) -> None:
        with suppress(FileNotFoundError):
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.ftruncate(descriptor, 0)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)


def _end_of_whole_lines(descriptor: int) -> int:
    """Cut a torn last line; where the next one begins."""
    size = os.fstat(descriptor).st_size
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return size
    keep = os.pread(descriptor, size, 0).rfind(b"\n") + 1
    os.ftruncate(descriptor, keep)
    return keep
