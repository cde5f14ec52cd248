"""Sparse raw disks: made, read and copied, whatever a guest has written to them. Blocking.
OSError.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from vmdriver.host.plain_file import open_plain
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.storage import files

PIECE = 2**20
"""Bytes of one at most."""
_AT_ONCE = 64 * 2**20
_NOT_HERE = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""Where copy_file_range(2) is not to be had."""


def create(path: Path, size: int, opened: ExitStack) -> int:
    """A descriptor, to write to a new disk of zeros. `opened` closes it, also where whoever waits
    for it is cancelled meanwhile.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    opened.callback(os.close, descriptor)
    os.ftruncate(descriptor, size)
    return descriptor


def open_disk(path: Path, opened: ExitStack, flags: int = os.O_RDONLY) -> int:
    """The same of one that is there."""
    descriptor = open_plain(path, flags)
    opened.callback(os.close, descriptor)
    return descriptor


def parts(descriptor: int) -> Iterator[Piece]:
    """What is not a hole, in pieces; the last one says, empty, where the disk ends."""
    at, end = 0, os.fstat(descriptor).st_size
    while (extent := _extent(descriptor, at)) is not None:
        at, stop = extent
        while at < stop:
            data = os.pread(descriptor, min(PIECE, stop - at), at)
            if not data:
                return
            if data.strip(b"\0"):
                yield Piece(at, data)
            at += len(data)
    yield Piece(end, b"")


def _extent(descriptor: int, at: int) -> tuple[int, int] | None:
    """Where the next data are. None: there are none."""
    try:
        begin = os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None
    return begin, os.lseek(descriptor, begin, os.SEEK_HOLE)


def copy_some(source: int, target: int, at: int) -> int | None:
    """Copy the next data from there on, not too much of it, into a disk of zeros: by a link to the
    same blocks where the file system has that. Where to go on; None: that was all.
    """
    extent = _extent(source, at)
    if extent is None:
        return None
    begin, stop = extent
    size = min(stop - begin, _AT_ONCE)
    try:
        done = os.copy_file_range(source, target, size, begin, begin)
    except OSError as error:
        if error.errno not in _NOT_HERE:
            raise
        data = os.pread(source, min(size, PIECE), begin)
        files.write_all(target, data, begin)
        done = len(data)
    if not done:
        raise OSError(errno.EIO, "the disk became shorter while it was copied")
    return begin + done
