"""Waiting until something is so, instead of for a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(
    condition: Callable[[], object],
    what: str | Callable[[], object] = "it never came to that",
    limit_s: float = 30,
    pause_s: float = 0.05,
) -> None:
    """AssertionError with `what` if that takes longer than `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(pause_s)
