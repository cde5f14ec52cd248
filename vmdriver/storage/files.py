"""Durable file operations: a file is there as a whole, or not at all, also after a
power cut.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmdriver.errors import StorageError
from vmdriver.host.plain_file import open_plain
from vmdriver.lifecycle.ports.host import Ownership


@contextmanager
def or_error(what: str, resolution: str = "") -> Iterator[None]:
    """What the file system refuses is a StorageError: `what` cannot be, and why not."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what}: {error.strerror or error}",
            detail=str(error),
            resolution=resolution,
        ) from error


def give(path: Path, owner: Ownership, mode: int) -> None:
    """Have a plain file belong to somebody. OSError, for all that is none too."""
    descriptor = open_plain(path)
    try:
        os.fchmod(descriptor, mode)
        os.fchown(descriptor, owner.uid, owner.gid)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a plain file's content durable. OSError, for all that is none too."""
    descriptor = open_plain(path)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path) -> bytes:
    """The whole content of a file, or of what a link leads to. OSError for all that is none: a
    pipe would be waited for without end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        return file.read()


def write_new(path: Path, data: bytes, mode: int = 0o600, *, sync: bool = True) -> None:
    """Write a file with exactly that mode from its first byte on; an old one is
    replaced.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode
    )
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it there: a disk that is nearly full takes less than it is given, and says why
    only when it is given the rest. OSError.
    """
    left = memoryview(data)
    while left:
        put = os.pwrite(descriptor, left, offset)
        if not put:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left, offset = left[put:], offset + put


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write beside, then rename into place. What could not be written whole is removed: on a
    full disk it would take the space that others need.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        write_new(part, data, mode)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, or a file, never following a link; absent
    is fine.
    """
    if not os.path.lexists(path):
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    sync_directory(path.parent)
