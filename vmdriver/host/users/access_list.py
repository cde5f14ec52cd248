"""Access lists of files: who may use one beside its owner and its group (acl(5)). No link is
followed. Blocking. OSError.

They are extended attributes, in the kernel's own format (include/uapi/linux/posix_acl_xattr.h):
a version, then entries of kind, rights and id, sorted by kind and id.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from pathlib import Path
from typing import Literal

_NAME = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_OWNER, _USER, _OWN_GROUP, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_NOBODY = 0xFFFFFFFF
_RIGHTS = {"r": 4, "x": 1, "rw": 6}
_NONE = {errno.ENODATA, errno.EOPNOTSUPP}
_Entries = dict[tuple[int, int], int]
_changing = threading.Lock()
"""Held from reading a list to writing it: two machines may be let in at once."""


def allow(
    path: Path,
    rights: Literal["r", "x", "rw"],
    *,
    uid: int | None = None,
    gid: int | None = None,
) -> None:
    """Give one more user, or group, these rights, in place of those that it had. Nothing is
    touched where it has them.
    """
    named = [(_USER, uid)] if uid is not None else []
    named += [(_GROUP, gid)] if gid is not None else []
    wanted = dict.fromkeys(named, _RIGHTS[rights])
    with _changing:
        entries = _read(path)
        # The group's mode bits are what any entry gives at most: a chmod may have taken some.
        given = path.lstat().st_mode >> 3 & _RIGHTS[rights]
        if given != _RIGHTS[rights] or not wanted.items() <= entries.items():
            _write(path, {**entries, **wanted})


def forbid(path: Path, uid: int) -> None:
    """Take a user's entry away. Fine where there is none."""
    with _changing:
        entries = _read(path)
        if entries.pop((_USER, uid), None) is not None:
            _write(path, entries)


def is_there(path: Path) -> bool:
    """Whether it has one: an entry that the mode bits do not say."""
    return bool(_data(path))


def drop(path: Path) -> None:
    """Take the whole list away. The mode is to be set after that: the group's bits said what the
    list gave at most.
    """
    with _changing:
        if _data(path):
            os.removexattr(path, _NAME, follow_symlinks=False)


def users(path: Path) -> set[int]:
    """Users that a list names."""
    return {found for kind, found in _read(path) if kind == _USER}


def _data(path: Path) -> bytes:
    try:
        return os.getxattr(path, _NAME, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NONE:
            raise
        return b""


def _read(path: Path) -> _Entries:
    """The list; one that says what the mode says, where there is none."""
    mode, data = path.lstat().st_mode, _data(path)
    entries = {
        (kind, found): rights for kind, rights, found in _ENTRY.iter_unpack(data[4:])
    }
    entries.pop((_MASK, _NOBODY), None)
    for kind, bits in ((_OWNER, mode >> 6), (_OWN_GROUP, mode >> 3), (_OTHER, mode)):
        entries.setdefault((kind, _NOBODY), bits & 7)
    return entries


def _write(path: Path, entries: _Entries) -> None:
    named = [value for (kind, _), value in entries.items() if kind in {_USER, _GROUP}]
    if named:
        mask = entries[_OWN_GROUP, _NOBODY]
        for value in named:
            mask |= value
        entries = {**entries, (_MASK, _NOBODY): mask}
    listed = (_ENTRY.pack(kind, entries[kind, i], i) for kind, i in sorted(entries))
    # Without a named entry the kernel makes mode bits of it, and keeps no list.
    os.setxattr(path, _NAME, _VERSION + b"".join(listed), follow_symlinks=False)
