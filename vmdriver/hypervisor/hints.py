"""Names of machines that may have changed, on their way from libvirt's thread to the event loop.

A QEMU that was taken over can say that it has changed a hundred thousand times a second. What is
told is that it has, not how often: so a name waits only once, and all that wait are handed over
together, a few times a second.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

_PAUSE_S = 0.05
"""Between two times. The first after a while is handed over at once."""


class Hints:
    """For one loop, in whose thread `deliver` is called, once for each name. `add` is for any
    thread.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deliver: Callable[[str], None]
    ) -> None:
        self._loop, self._deliver = loop, deliver
        self._names: set[str] = set()
        self._adding = threading.Lock()
        self._last = -_PAUSE_S

    def add(self, name: str) -> None:
        """That machine may have changed."""
        with self._adding:
            waited_for = bool(self._names)
            self._names.add(name)
        if not waited_for and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        left_s = self._last + _PAUSE_S - time.monotonic()
        if left_s > 0:
            self._loop.call_later(left_s, self._hand_over)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        self._last = time.monotonic()
        with self._adding:
            names, self._names = self._names, set()
        for name in sorted(names):
            self._deliver(name)
