"""Mounts that only this process and its children see (mount_namespaces(7))."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SLAVE = 0x1000, 0x4000, 0x40000, 0x80000


def enter_own_namespace() -> None:
    """From here on, mounts of this thread, and of threads and processes that it begins, are
    theirs alone; what the host mounts and unmounts later still arrives. OSError: not permitted.

    To be called in the main thread before others work with files.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise _error("unshare")
    _mount(b"none", Path("/"), _MS_REC | _MS_SLAVE)


def bind(source: Path, target: Path) -> None:
    """Show the folder `source`, with what is mounted below it, at the folder `target` too.
    OSError.
    """
    _mount(os.fsencode(source), target, _MS_BIND | _MS_REC)


def bind_opened(folder: int, target: Path) -> None:
    """Show the folder that this is a descriptor of, without what is or will be mounted below it, at
    `target` too. It must have been opened in this thread's own namespace. OSError.
    """
    _mount(f"/proc/thread-self/fd/{folder}".encode(), target, _MS_BIND)
    _mount(b"none", target, _MS_PRIVATE)


def _mount(source: bytes, target: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (source, os.fsencode(target), None, ctypes.c_ulong(flags), None)
    if libc.mount(*arguments) != 0:
        raise _error(str(target))


def _error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)
