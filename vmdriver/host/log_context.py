"""What the driver is at, for whoever reads its log: goes with the task that is at it, into its
threads and into the tasks that it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class At:
    """ "" where it is none."""

    sandbox: str = ""
    trace: str = ""
    """The trace id of the W3C's trace context: 32 hexadecimal digits."""
    step: str = ""


_NOTHING = At()
_at: ContextVar[At] = ContextVar("at", default=_NOTHING)


def at() -> At:
    """What this task, or thread, is at."""
    return _at.get()


def now_at(**changes: str) -> None:
    """From now on, until the end of this task."""
    _at.set(replace(_at.get(), **changes))


@contextmanager
def being_at(**changes: str) -> Iterator[None]:
    """For what is inside."""
    before = _at.get()
    _at.set(replace(before, **changes))
    try:
        yield
    finally:
        _at.set(before)  # by no token: a generator may be closed by another task


def at_nothing() -> Context:
    """For a task that works for all sandboxes, whichever had it begun."""
    return Context()
