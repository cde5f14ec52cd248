"""A machine's QMP monitor, as code that took QEMU over has it: the very socket that libvirt reads."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.waiting import until

_PIDFD_GETFD = 438
_LISTENS = "00010000"


def event(name: str, **fields: object) -> bytes:
    """An event of QEMU's, with only those fields more."""
    said = {"timestamp": {"seconds": 1, "microseconds": 2}, "event": name, **fields}
    return json.dumps(said).encode() + b"\r\n"


def _monitors(pid: int) -> set[str]:
    """Socket numbers of QEMUs' ends of monitors, in the namespace of that one and ours: they are of whoever made them."""
    tables = [Path(f"/proc/{who}/net/unix").read_text() for who in (pid, "self")]
    lines = [line.split(None, 7) for table in tables for line in table.splitlines()]
    return {
        line[6]
        for line in lines
        if len(line) == 8 and line[7].endswith("monitor.sock") and line[3] != _LISTENS
    }


@contextmanager
def monitor_of(pid: int) -> Iterator[socket.socket]:
    """That QEMU's end of its monitor."""
    monitors, libc = _monitors(pid), ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
            if found and found[1] in monitors:
                taken = libc.syscall(_PIDFD_GETFD, handle, int(entry.name), 0)
                assert taken >= 0, os.strerror(ctypes.get_errno())
                with socket.socket(fileno=taken) as monitor:
                    yield monitor
                return
    finally:
        os.close(handle)
    raise AssertionError(f"{pid} has no monitor")


def say(monitor: socket.socket, said: bytes) -> None:
    """All of it, and it was read: or libvirt has hung up."""
    left = memoryview(said)

    def all_is_sent() -> bool:
        nonlocal left
        try:
            left = left[monitor.send(left) :] if left else left
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError):
            return True
        return not left and not _unread(monitor)

    until(all_is_sent, 20)


def _unread(monitor: socket.socket) -> int:
    answer = fcntl.ioctl(monitor, termios.TIOCOUTQ, b"\0" * 4)
    return int(struct.unpack("i", answer)[0])
