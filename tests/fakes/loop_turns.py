"""How long a loop's turns are."""

from __future__ import annotations

import asyncio
import gc
import time

_NOTHING_MS = 0.2
"""A turn of less did nothing that anybody would notice."""


class LoopTurns:
    """CPU milliseconds of each turn of the running loop in which something was done, while this is entered: whoever waits
    for the loop waits for one. CPU time of its thread, not time: what else this machine does makes no difference. Without
    collections of garbage: the heap of a test's process is no driver's.
    """

    def __init__(self) -> None:
        self.ms: list[float] = []
        self._last = 0.0

    def __enter__(self) -> LoopTurns:
        gc.disable()
        self._last = time.thread_time()
        self._handle = asyncio.get_running_loop().call_soon(self._turn)
        return self

    def _turn(self) -> None:
        now = time.thread_time()
        took = (now - self._last) * 1e3
        if took >= _NOTHING_MS:
            self.ms.append(took)
        self._last = now
        self._handle = asyncio.get_running_loop().call_soon(self._turn)

    def __exit__(self, *_: object) -> None:
        self._handle.cancel()
        gc.enable()

    def percentile(self, share: float) -> float:
        """Of `ms`: so much of them is not longer."""
        return sorted(self.ms)[int((len(self.ms) - 1) * share)]
