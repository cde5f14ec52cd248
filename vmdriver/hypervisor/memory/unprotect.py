"""The guest's memory is not protected against writing any more, whatever its QEMU says.

A QEMU before 8.1 whose background snapshot is cancelled or fails leaves the memory protected, for
ever: whoever writes there next stands still, QEMU's first thread among them, which answers the
monitor. The descriptor that protects (userfaultfd) is taken from the process, and what it protects
is given free. A writing that is under way fails by that.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import struct
import time
from contextlib import suppress
from pathlib import Path

from vmdriver.hypervisor.qemu_process import pid_of

_PIDFD_GETFD = 438
_UNREGISTER, _WAKE = 0x8010AA01, 0x8010AA02
"""_IOR(UFFDIO, 1 and 2, struct uffdio_range), linux/userfaultfd.h: the first wakes nobody who waits
to write.
"""
_LONGEST_S = 4.0
"""One that was taken over may have as many ranges and descriptors as it likes."""
_LINK = "anon_inode:[userfaultfd]"
_RANGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ", re.MULTILINE)


def unprotect(directory: Path, domain: str) -> None:
    """Of a domain's QEMU, whose process id libvirt notes in `directory`. Fine where none runs.
    OSError.
    """
    pid = pid_of(directory, domain)
    if pid is None:
        return
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if pid_of(directory, domain) == pid:
            unprotect_process(process, pid)
    finally:
        os.close(process)


def unprotect_process(process: int, pid: int) -> None:
    """The same of that process, which the descriptor `process` pins. OSError."""
    proc, end = Path(f"/proc/{pid}"), time.monotonic() + _LONGEST_S
    try:
        protecting = [int(e.name) for e in (proc / "fd").iterdir() if _protects(e)]
        text = (proc / "maps").read_text(errors="replace") if protecting else ""
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended
    for number in protecting:
        taken = _take(process, number)
        try:
            if _protects(Path(f"/proc/self/fd/{taken}")):
                _give_free(taken, text, end)
        finally:
            os.close(taken)


def _protects(entry: Path) -> bool:
    with suppress(OSError):  # closed meanwhile
        return str(entry.readlink()) == _LINK
    return False


def _take(process: int, number: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    words = (_PIDFD_GETFD, process, number, 0)
    found: int = libc.syscall(*map(ctypes.c_long, words))
    if found < 0:
        wrong = ctypes.get_errno()
        raise OSError(wrong, os.strerror(wrong))
    return found


def _give_free(protecting: int, maps: str, end: float) -> None:
    """Whoever waits there goes on. OSError when that is not done by `end`."""
    for match in _RANGE.finditer(maps):
        if time.monotonic() > end:
            raise OSError(errno.ETIMEDOUT, "it has too much memory of its own making")
        start, end = (int(number, 16) for number in match.groups())
        of_it = struct.pack("QQ", start, end - start)
        with suppress(OSError):  # what is not protected, or not any more
            fcntl.ioctl(protecting, _UNREGISTER, of_it)
            fcntl.ioctl(protecting, _WAKE, of_it)
