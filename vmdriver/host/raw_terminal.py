"""A terminal that hands over every key as it comes, and is as it was afterwards, whatever ends us.

A process that is killed restores nothing, so a small one of ours waits for our end: it holds the
reading end of a pipe, and its end without a word means that we have gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator

_IGNORED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGTTOU,
    signal.SIGTTIN,
    signal.SIGTSTP,
)
_DONE = b"."


@contextlib.contextmanager
def raw(terminal: int) -> Iterator[None]:
    """That terminal meanwhile. OSError where it is none. For programs without threads: it forks.
    A SIGTERM or SIGHUP meanwhile is a SystemExit, so that what is open is closed.
    """
    try:
        before = termios.tcgetattr(terminal)
    except termios.error as error:
        raise OSError(error.args[0], "it is no terminal") from error
    with _ends_in_order(), _guarded(terminal, before):
        try:
            tty.setraw(terminal, termios.TCSADRAIN)
            yield
        finally:
            _restore(terminal, before)


def _restore(terminal: int, before: list[object]) -> None:
    with contextlib.suppress(termios.error, OSError):  # it has hung up
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)  # type: ignore[arg-type]


@contextlib.contextmanager
def _ends_in_order() -> Iterator[None]:
    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    known = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _guarded(terminal: int, before: list[object]) -> Iterator[None]:
    theirs, ours = os.pipe()
    guard = os.fork()
    if guard == 0:
        try:
            os.close(ours)
            _guard(terminal, before, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.write(ours, _DONE)
        os.close(ours)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(guard, 0)


def _guard(terminal: int, before: list[object], pipe: int) -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    keep = {terminal, pipe}
    for descriptor in (d for d in range(256) if d not in keep):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    while True:
        try:
            found = os.read(pipe, 1)
            break
        except InterruptedError:
            continue
    if found != _DONE:
        _restore(terminal, before)
