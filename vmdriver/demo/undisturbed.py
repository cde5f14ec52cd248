"""A demo has the host's one place for demos to itself, and cleans up although it is told to end."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmdriver.errors import Unavailable

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_once() -> Iterator[None]:
    """KeyboardInterrupt at the first signal that asks for an end; the next ones do not cut short
    what is cleaned up then. What was ignored before, as by nohup(1), still is.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    heard = [number for number in _ENDING if before[number] is not signal.SIG_IGN]

    def end(_number: int, _frame: object) -> None:
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """With that folder, which no other demo has meanwhile; it is gone at the end, also where this
    process is killed and another demo comes after it. Unavailable where another one has it.
    """
    descriptor = _taken(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _taken(folder: Path) -> int:
    """An open folder that is locked, and is the one that has the name now."""
    while True:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # a demo that ended just now took it along
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            own = os.fstat(descriptor)
            if folder.exists() and os.path.samestat(own, folder.stat()):
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise Unavailable(
                "another demo runs on this host", resolution="wait for its end"
            ) from None
