"""Files that somebody else may write, a QEMU above all: opened by root without being led anywhere.

What was a file may be a link to another machine's disk now, a pipe that nobody writes to, a
device that does something when it is opened, or larger than all memory. So the last step of the
path is looked at before it is opened, and whoever reads says how much.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path

_SET_SIGNAL = 10
"""F_SETSIG of linux/fcntl.h; SIGURG is ignored where nobody asks for it."""


def open_plain(path: Path | str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the plain file at that path. OSError for a link, a pipe, a device, a folder:
    none of them is followed, opened or waited for. BlockingIOError where its owner has a lease on
    it (fcntl(2)), with which he could have us wait for 45 s, every time.
    """
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check_kind(found)
        # Of what was looked at, whatever has its name now.
        more = os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(f"/proc/self/fd/{found}", flags | more)
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


def is_open_to_write(descriptor: int) -> bool:
    """Whether anybody has that file, which is open for reading here, open for writing: also who
    may not open it any more. The kernel gives a lease on reading (fcntl(2)) only where nobody has.
    False where the file system knows no leases.
    """
    # Not SIGIO, which would end this process: of a lease that is broken meanwhile.
    fcntl.fcntl(descriptor, _SET_SIGNAL, signal.SIGURG)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
