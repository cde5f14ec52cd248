"""Reaps QEMU processes, where nobody else does it in time.

libvirt daemonises QEMU, so an ended QEMU is left to the host's PID 1. libvirt then
polls kill(pid, 0) every 200 ms until the zombie is gone. Where PID 1 reaps late
(containers, some microVMs) a destroy takes 1.6 s instead of 0.2 s (measured, libvirt
9.0). As their subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) we inherit them and reap
them at once.

Children that libvirt or asyncio wait for themselves must be left alone. They share our
session, or lead a session of their own; a daemonised QEMU does neither. A QEMU that
daemonises itself, since libvirt asks it what it can do, also leaves its first fork behind,
which leads a session, as a QEMU does that is begun here to try its box. Whoever waits for
one has it within milliseconds: what is still there after seconds nobody waits for.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_QEMU = "qemu-system-"
LEFT_S = 2.0
"""After so long a QEMU is taken for one that nobody waits for."""


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def _left_behind(pid: int) -> bool | None:
    """Whether it has ended, and nobody but us waits for it. None: a QEMU of which
    only time tells.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # proc(5): pid (comm) state ppid pgrp session ...; comm may hold anything, so read
    # behind its last bracket.
    head, _, rest = stat.rpartition(")")
    state, _, _, session = rest.split()[:4]
    if state != "Z" or int(session) == os.getsid(0):
        return False
    if int(session) != pid:
        return True
    return None if head.partition("(")[2].startswith(_QEMU) else False


class Reaper:
    """Remembers since when the QEMUs are there that somebody may wait for."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def reap(self) -> int:
        """Reap what is ours to reap; returns how many processes that were."""
        count, now, since = 0, time.monotonic(), {}
        for pid in _children():
            left = _left_behind(pid)
            if left is None:
                since[pid] = self._since.get(pid, now)
                left = now - since[pid] >= LEFT_S
            if left:
                since.pop(pid, None)
                try:
                    count += os.waitpid(pid, os.WNOHANG)[0] == pid
                except ChildProcessError:
                    continue
        self._since = since
        return count

    def is_to_look_again(self) -> bool:
        """Whether there are some of which it is not known yet that nobody waits for them."""
        return bool(self._since)


def inherit() -> None:
    """Become the subreaper: what is left behind from now on is ours to reap."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Become the subreaper, and reap whenever a child ends. To be called in the main
    thread.
    """
    inherit()
    reaper = Reaper()

    def look() -> None:
        reaper.reap()
        if reaper.is_to_look_again():
            loop.call_later(LEFT_S, look)

    loop.add_signal_handler(signal.SIGCHLD, look)
