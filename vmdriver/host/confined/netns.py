"""Network namespaces and their names, kept as ip-netns(8) keeps them: each name is a file below
/run/netns that the namespace is mounted on. What is changed here is one thread's own:
namespaces(7), setns(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2
PLACE = Path("/run/netns")
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> Path:
    """Where the namespace of that name is."""
    return PLACE / name


def make() -> int:
    """A new namespace, without a name yet: this thread is in it from now on, for good, so it is to
    do nothing else. A descriptor of it, the caller's to close. OSError.
    """
    _check(_libc.unshare(_CLONE_NEWNET), "unshare")
    return os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def entered(place: str | Path | None) -> Iterator[None]:
    """This thread is in the namespace of that name, or file, meanwhile, and so is whatever thread
    or program it begins. None: it stays where it is. OSError: there is none, or the way back
    failed.
    """
    if place is None:
        yield
        return
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(PLACE / place)
        try:
            yield
        finally:
            _check(_libc.setns(own, _CLONE_NEWNET), "back to the own namespace")
    finally:
        os.close(own)


def _enter(place: Path) -> None:
    there = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(there, _CLONE_NEWNET), str(place))
    finally:
        os.close(there)


def of_processes() -> list[Path]:
    """A file of each namespace that a process is in, without this thread's own."""
    known, found = {Path(_OWN).stat().st_ino}, []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended
            file = process / "ns" / "net"
            number = file.stat().st_ino
            if number not in known:
                known.add(number)
                found.append(file)
    return found


def give_name(namespace: int, name: str) -> None:
    """Keep the namespace of that descriptor under a name that none has. OSError."""
    have_place()
    file = path(name)
    os.close(os.open(file, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    try:
        _mount(f"/proc/self/fd/{namespace}", file, _MS_BIND)
    except OSError:
        file.unlink(missing_ok=True)
        raise


def forget(name: str) -> None:
    """Remove the name, there or not; the namespace goes when nobody is in it any more. OSError."""
    file = path(name)
    if _libc.umount2(os.fsencode(file), _MNT_DETACH) != 0:
        number = ctypes.get_errno()
        # The file may be there without a mount: of a driver that had mounts of its own.
        if number not in {errno.ENOENT, errno.EINVAL}:
            raise OSError(number, os.strerror(number), str(file))
    file.unlink(missing_ok=True)


def names() -> list[str]:
    """Of all that there are, whoever made them."""
    try:
        return sorted(entry.name for entry in PLACE.iterdir())
    except FileNotFoundError:
        return []


def is_there(name: str) -> bool:
    """Whether a namespace has that name, as far as this process can see."""
    try:
        return path(name).stat().st_dev != PLACE.stat().st_dev
    except FileNotFoundError:
        return False


def have_place() -> None:
    """The directory of the names, shared as ip-netns(8) has it: a name that is removed is gone in
    every mount namespace, so that no program keeps a namespace alive which it never entered.
    OSError.
    """
    PLACE.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        _mount("", PLACE, _MS_SHARED | _MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount(str(PLACE), PLACE, _MS_BIND | _MS_REC)
        _mount("", PLACE, _MS_SHARED | _MS_REC)


def _mount(source: str, target: Path, flags: int) -> None:
    arguments = (source.encode(), os.fsencode(target), b"none", ctypes.c_ulong(flags))
    _check(_libc.mount(*arguments, None), str(target))


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
