"""Reaps QEMU processes, where nobody else does it in time.

libvirt daemonises QEMU, so an ended QEMU is left to the host's PID 1. libvirt then
polls kill(pid, 0) every 200 ms until the zombie is gone. Where PID 1 reaps late
(containers, some microVMs) a destroy takes 1.6 s instead of 0.2 s (measured, libvirt
9.0). As their subreaper (prctl(2), PR_SET_CHILD_SUBREAPER) we inherit them and reap
them at once.

Children that libvirt or asyncio wait for themselves must be left alone. They share our
session, or lead a session of their own; a daemonised QEMU does neither. A QEMU that
daemonises itself, since libvirt asks it what it can do, also leaves its first fork behind,
which leads a session; nobody here begins a QEMU that leads one and waits for it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_QEMU = "qemu-system-"


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += [int(pid) for pid in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def _is_orphaned_zombie(pid: int) -> bool:
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
    return int(session) != pid or head.partition("(")[2].startswith(_QEMU)


def reap() -> int:
    """Reap what is ours to reap; returns how many processes that were."""
    count = 0
    for pid in _children():
        if _is_orphaned_zombie(pid):
            try:
                count += os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                continue
    return count


def inherit() -> None:
    """Become the subreaper: what is left behind from now on is ours to reap."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def install(loop: asyncio.AbstractEventLoop) -> None:
    """Become the subreaper, and reap whenever a child ends. To be called in the main
    thread.
    """
    inherit()
    loop.add_signal_handler(signal.SIGCHLD, reap)
