"""User ids of this host: who has them, and what runs as one."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

UNUSED = range(1_879_048_192, 2_147_352_576)
"""Ids where systemd's list of them (UIDS-GIDS.md) knows nobody, and useradd gives nobody any: it
begins with the lowest that are free (SUB_UID_MIN in login.defs(5)).
"""
_GONE = "ZX"
"""States of a process that runs no more and waits for its parent (proc(5))."""


def processes_of(uid: int, proc: Path = Path("/proc")) -> list[int]:
    """Ids of the processes that run as that user. Blocking, some milliseconds."""
    with os.scandir(proc) as entries:
        numbers = [int(entry.name) for entry in entries if entry.name.isdecimal()]
    return [number for number in numbers if runs_as(number, uid, proc)]


def runs_as(pid: int, uid: int, proc: Path = Path("/proc")) -> bool:
    """Whether that process runs as that user: the kernel's word, which it cannot change."""
    process = proc / str(pid)
    try:
        return process.stat().st_uid == uid and _runs(process)
    except OSError:
        return False  # it has ended meanwhile


def _runs(process: Path) -> bool:
    """Its first thread may have ended before others, which go on: it looks like a process that
    waits for its parent then.
    """
    states = [process, *(process / "task").glob("[0-9]*")]
    return any(_state(thread) not in _GONE for thread in states)


def _state(thread: Path) -> str:
    """ "X" where it has ended meanwhile."""
    try:
        text = (thread / "stat").read_text(errors="replace")
    except OSError:
        return "X"
    # "PID (name) STATE …": a name may have anything in it, brackets too.
    return text.rpartition(")")[2].split()[0]


def is_named(uid: int) -> bool:
    """Whether it is an account's of this host."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def others_between(first: int, last: int, etc: Path = Path("/etc")) -> str:
    """Who of this host has an id between these two, in words, or "": users, groups, and users'
    ranges for their own namespaces (subuid(5)).
    """
    for begin, end, who in _others(etc):
        if begin <= last and first <= end:
            return who
    return ""


def way_out(count: int, etc: Path = Path("/etc")) -> str:
    """What to set machine_uids to: so many, the lowest that nobody has or gets."""
    first = UNUSED.start
    advice = "set machine_uids to numbers that nobody has on this host"
    for begin, end, _ in sorted(_others(etc)):
        if begin < first + count and first <= end:
            first = end + 1
    if first + count > UNUSED.stop:
        return advice
    return f'{advice}, such as "{first}-{first + count - 1}"'


def _others(etc: Path) -> Iterator[tuple[int, int, str]]:
    """First and last id that somebody has, and who in words."""
    for user in pwd.getpwall():
        yield user.pw_uid, user.pw_uid, f"user {user.pw_name} is {user.pw_uid}"
    for group in grp.getgrall():
        yield group.gr_gid, group.gr_gid, f"group {group.gr_name} is {group.gr_gid}"
    for name in ("subuid", "subgid"):
        for line in _lines(etc / name):
            who, _, numbers = line.partition(":")
            begin, _, count = numbers.partition(":")
            with contextlib.suppress(ValueError):
                end = int(begin) + int(count) - 1
                yield int(begin), end, f"{who} has {begin}-{end} in {etc / name}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
