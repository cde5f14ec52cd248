"""Opens the folder that an operator allowed, or one in it, whatever somebody has put in its place
meanwhile: a guest may write in there, and a link of its would lead elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import struct

from vmdriver.errors import DriverError, HostError, Refused
from vmdriver.model.host_mount import SETTING

_OPENAT2 = 437
"""Number of the call, the same for all machines (openat2(2), from Linux 5.6)."""
_AT_FDCWD = -100
_NO_MAGIC_LINKS, _NO_LINKS, _BENEATH = 0x02, 0x04, 0x08
_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_folder(allowed: str, path: str) -> int:
    """A descriptor of the folder `path`, which is `allowed` or in it. No link is followed on the
    way. Refused, HostError.
    """
    try:
        outer = _open(_AT_FDCWD, allowed, _NO_LINKS | _NO_MAGIC_LINKS)
        rest = posixpath.relpath(path, allowed)
        if rest == ".":
            return outer
        try:
            return _open(outer, rest, _BENEATH | _NO_LINKS | _NO_MAGIC_LINKS)
        finally:
            os.close(outer)
    except OSError as error:
        raise _refused(path, error) from error


def _open(at: int, path: str, resolve: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("QQQ", _FLAGS, 0, resolve)  # struct open_how
    found: int = libc.syscall(
        *(ctypes.c_long(_OPENAT2), ctypes.c_long(at)),
        *(os.fsencode(path), how, ctypes.c_size_t(len(how))),
    )
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return found


def _refused(path: str, error: OSError) -> DriverError:
    match error.errno:
        case errno.ELOOP | errno.EXDEV:
            return Refused(
                f"host folder {path}: a link is on the way to it",
                reason="HostMountLink",
                resolution=f"name what it leads to, here and in {SETTING}",
            )
        case errno.ENOENT | errno.ENOTDIR:
            return Refused(
                f"host folder {path} is not there, or is no folder",
                reason="HostMountMissing",
                resolution="make it, or name another one",
            )
        case _:
            return HostError(
                f"host folder {path} cannot be opened: {error.strerror}",
                reason="HostMountFailed",
            )
