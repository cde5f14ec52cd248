"""Files that somebody else may write, a QEMU above all: opened by root without being led anywhere.

What was a file may be a link to another machine's disk now, a pipe that nobody writes to, a
device that does something when it is opened, or larger than all memory. So the last step of the
path is looked at before it is opened, and whoever reads says how much.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_plain(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the plain file at that path. OSError for a link, a pipe, a device, a folder:
    none of them is followed, opened or waited for.
    """
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_kind(found)
        # Of what was looked at, whatever has its name now.
        return os.open(f"/proc/self/fd/{found}", flags | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(found)


def _check_kind(found: int) -> None:
    if not stat.S_ISREG(os.fstat(found).st_mode):
        raise OSError(errno.EINVAL, "it is no plain file")


def read_start(path: Path | str, most: int) -> bytes:
    """Up to `most` bytes from its beginning. OSError as for `open_plain`."""
    descriptor = open_plain(path)
    try:
        return os.pread(descriptor, most, 0)
    finally:
        os.close(descriptor)
