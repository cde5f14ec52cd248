"""Mounts that only this process and its children see (mount_namespaces(7))."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SLAVE = 0x1000, 0x4000, 0x40000, 0x80000
_MNT_DETACH = 2
# The same numbers for all machines (open_tree(2), move_mount(2), from Linux 5.2).
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _FROM_DESCRIPTOR = 1, os.O_CLOEXEC, 4


def enter_own_namespace(common: Iterable[Path] = ()) -> None:
    """From here on, mounts of this thread, and of threads and processes that it begins, are
    theirs alone; what the host mounts and unmounts later still arrives. Below `common`, which are
    shared mounts, all mounts and unmounts stay everybody's. OSError: not permitted.

    To be called in the main thread before others work with files.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.ExitStack() as stack:
        copies: list[tuple[int, Path]] = []
        for place in common:
            copy = _peer(place)
            stack.callback(os.close, copy)
            copies.append((copy, place))
        if libc.unshare(_CLONE_NEWNS) != 0:
            raise _error("unshare")
        _mount(b"none", Path("/"), _MS_REC | _MS_SLAVE)
        for copy, place in copies:
            _put(copy, place)


def _peer(place: Path) -> int:
    """A descriptor of a copy of the mount there, with what is mounted below it, that is not shown
    anywhere yet. Of one peer group: what is mounted below either is below the other.
    """
    flags = _AT_RECURSIVE | _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    return _call(_OPEN_TREE, place, _AT_FDCWD, os.fsencode(place), flags)


def _put(copy: int, place: Path) -> None:
    """Show it instead of the mount that only follows."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(place), _MNT_DETACH) != 0:
        raise _error(str(place))
    target = _AT_FDCWD, os.fsencode(place)
    _call(_MOVE_MOUNT, place, copy, b"", *target, _FROM_DESCRIPTOR)


def _call(number: int, place: Path, *words: int | bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    given = [ctypes.c_long(w) if isinstance(w, int) else w for w in words]
    found: int = libc.syscall(ctypes.c_long(number), *given)
    if found < 0:
        raise _error(str(place))
    return found


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
