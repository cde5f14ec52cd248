"""Room for one more record of a sandbox on a disk that is full.

A wish, such as a stop of the very machine that stands still for want of space, is stored before
anything is done about it. Beside each record lies a file of the same kind, whose blocks are there
already: written over and renamed into place it is the record, and the old record's blocks are the
next one's room.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from vmdriver.storage import files

NAME = ".record.spare"
_LEAST_BYTES = 16 * 1024
_FULL = {errno.ENOSPC, errno.EDQUOT}


def provide(record: Path, needed: int) -> None:
    """Have a spare for `needed` bytes beside that record, if there is space for one."""
    spare, size = record.with_name(NAME), max(_LEAST_BYTES, 2 * needed)
    with contextlib.suppress(OSError):
        if not _is_there(spare, needed):
            # Blanks behind JSON mean nothing; a hole would have no blocks.
            files.write_new(spare, b" " * size, sync=False)


def _is_there(spare: Path, needed: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return spare.stat().st_size >= needed
    return False


def replace(record: Path, data: bytes) -> None:
    """Replace the record, durably; on a full disk in its spare's blocks. OSError."""
    try:
        files.replace(record, data)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        _into_spare(record, data, error)
    provide(record, len(data))


def _into_spare(record: Path, data: bytes, full: OSError) -> None:
    spare = record.with_name(NAME)
    if not _is_there(spare, len(data)):
        raise full
    descriptor = os.open(spare, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        padded = data.ljust(os.fstat(descriptor).st_size)
        while padded:
            padded = padded[file.write(padded) :]
        os.fsync(descriptor)
    spare.replace(record)
    files.sync_directory(record.parent)
