"""User ids of this host: who has them, and what runs as one."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from pathlib import Path

_GONE = "ZX"
"""States of a process that runs no more and waits for its parent (proc(5))."""


def processes_of(uid: int, proc: Path = Path("/proc")) -> list[int]:
    """Ids of the processes that run as that user. Blocking, some milliseconds."""
    found = []
    with os.scandir(proc) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                runs = entry.name.isdecimal() and entry.stat().st_uid == uid
                if runs and _state(Path(entry.path)) not in _GONE:
                    found.append(int(entry.name))
    return found


def _state(process: Path) -> str:
    # "PID (name) STATE …": a name may have anything in it, brackets too.
    return (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]


def others_between(first: int, last: int, etc: Path = Path("/etc")) -> str:
    """Who of this host has an id between these two, in words, or "": users, groups, and users'
    ranges for their own namespaces (subuid(5)).
    """
    for user in pwd.getpwall():
        if first <= user.pw_uid <= last:
            return f"user {user.pw_name} is {user.pw_uid}"
    for group in grp.getgrall():
        if first <= group.gr_gid <= last:
            return f"group {group.gr_name} is {group.gr_gid}"
    for name in ("subuid", "subgid"):
        for line in _lines(etc / name):
            who, _, numbers = line.partition(":")
            begin, _, count = numbers.partition(":")
            with contextlib.suppress(ValueError):
                end = int(begin) + int(count) - 1
                if int(begin) <= last and first <= end:
                    return f"{who} has {begin}-{end} in {etc / name}"
    return ""


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
