"""Opens the folder that an operator allowed, or one in it, whatever somebody has put in its place
meanwhile: a guest may write in there, and a link of its would lead elsewhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
import struct
from pathlib import Path

from vmdriver.errors import DriverError, HostError, Refused
from vmdriver.model.host_mount import SETTING

_OPENAT2 = 437
"""Number of the call, the same for all machines (openat2(2), from Linux 5.6)."""
_AT_FDCWD = -100
_NO_MAGIC_LINKS, _NO_LINKS, _BENEATH = 0x02, 0x04, 0x08
_KERNELS = frozenset(
    {
        *("proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs"),
        *("debugfs", "tracefs", "configfs", "bpf", "pstore", "efivarfs"),
        *("binfmt_misc", "mqueue", "fusectl", "selinuxfs", "nsfs", "rpc_pipefs"),
        "nfsd",
    }
)
"""Kinds of file systems whose files are no data: a folder of /proc's may be mounted in others, for
somebody's root of his own.
"""
_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_folder(allowed: str, path: str) -> int:
    """A descriptor of the folder `path`, which is `allowed` or in it. No link is followed on the
    way, and nothing of the kernel's own is opened, wherever it is mounted. Refused, HostError.
    """
    try:
        found = _opened(allowed, path)
        try:
            _check_kind(path, _file_system(found))
        except BaseException:
            os.close(found)
            raise
    except OSError as error:
        raise _refused(path, error) from error
    return found


def _opened(allowed: str, path: str) -> int:
    outer = _open(_AT_FDCWD, allowed, _NO_LINKS | _NO_MAGIC_LINKS)
    rest = posixpath.relpath(path, allowed)
    if rest == ".":
        return outer
    try:
        return _open(outer, rest, _BENEATH | _NO_LINKS | _NO_MAGIC_LINKS)
    finally:
        os.close(outer)


def _check_kind(path: str, kind: str) -> None:
    if kind in _KERNELS:
        raise Refused(
            f"host folder {path}: what is mounted there ({kind}) is the system's own",
            reason="HostMountNotAllowed",
            resolution="ask for another folder",
        )


def _file_system(folder: int) -> str:
    """Its kind, by the kernel's list of mounts: who asks the file system itself waits for one that
    does not answer (proc_pid_mountinfo(5)).
    """
    told = Path(f"/proc/thread-self/fdinfo/{folder}").read_text().splitlines()
    number = next(line.split()[1] for line in told if line.startswith("mnt_id:"))
    for line in Path("/proc/thread-self/mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        if place.split()[0] == number:
            return kind.split()[0]
    return ""


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
