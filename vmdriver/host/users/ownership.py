"""Whose a file is, with its mode bits and its access list. Nothing is touched that is right: the
time of its last change tells whether a file is the one that it was. Blocking. OSError, for a
link, a pipe or a device too: none is followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmdriver.host.plain_file import open_plain
from vmdriver.host.users import access_list


@contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = open_plain(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _make(path: Path, uid: int, gid: int, mode: int) -> bool:
    """Have it be that user's and group's, with that mode and no access list. False: it was. The
    owner goes first: as long as it is his, he can have the rest be as he likes again.
    """
    with _open(path) as descriptor:
        info = os.fstat(descriptor)
        present = info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)
        # Where there is an access list, the group's bits say what it gives at most.
        if present == (uid, gid, mode) and not access_list.is_there(path):
            return False
        os.fchown(descriptor, uid, gid)
        access_list.drop(path)
        os.fchmod(descriptor, mode)
        return True


def _look(path: Path) -> os.stat_result:
    with _open(path) as descriptor:
        return os.fstat(descriptor)


def own(path: Path, uid: int, mode: int = 0o600) -> None:
    """Have a file be that user's alone. Its group is ours: machines' common one has no right."""
    _make(path, uid, os.getegid(), mode)


def freeze(path: Path) -> None:
    """Have nobody write to a file, and its owner read it."""
    with _open(path) as descriptor:
        # With an access list, the group's bits are what it gives at most.
        if os.fstat(descriptor).st_mode & 0o622 != 0o400:
            os.fchmod(descriptor, 0o400)


def take(path: Path, readers: set[int]) -> None:
    """Have a file be ours, for nobody to write and for these users to read, beside those that may
    already.
    """
    info = _look(path)
    if info.st_uid != os.geteuid() or info.st_mode & 0o222:
        _make(path, os.geteuid(), os.getegid(), 0o400)
    for uid in readers:
        access_list.allow(path, "r", uid=uid)


def share(path: Path, gid: int, earlier: int = -1) -> None:
    """Have a file be ours, for nobody to write and for that group to read. A process of the user
    `earlier` that has read it until now may go on.
    """
    info = _look(path)
    if (info.st_uid, info.st_gid) == (os.geteuid(), gid) and not info.st_mode & 0o337:
        return
    may_read = info.st_uid == earlier or info.st_mode & 0o004
    _make(path, os.geteuid(), gid, 0o440)
    if earlier >= 0 and may_read:
        access_list.allow(path, "r", uid=earlier)


def pass_through(folder: Path, uid: int) -> None:
    """Have a folder be ours, for that user to pass beside those that may already."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder, flags)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o707 != 0o700:
            access_list.drop(folder)
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)
    access_list.allow(folder, "x", uid=uid)


def open_to(folder: Path, gid: int) -> None:
    """Have a folder be ours, for that group to pass, and nobody else."""
    access_list.drop(folder)
    folder.chmod(0o710)
    os.chown(folder, os.geteuid(), gid)


def disown(path: Path, uid: int) -> None:
    """That user has nothing of it any more. Fine with what is gone."""
    try:
        if path.lstat().st_uid == uid:
            os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
        access_list.forbid(path, uid)
    except FileNotFoundError:
        return
