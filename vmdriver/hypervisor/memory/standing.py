"""Between the thread that has a machine's memory written and whoever makes it stand still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

_LOOK_S = 0.05


class Standing:
    """Asked for once by the thread, answered once by the loop: it stands still, or it will not."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._answered = threading.Event()
        self._stands = False

    # --- the loop

    async def asked(self) -> None:
        """Until it is asked for."""
        await self._asked.wait()

    def answer(self, *, stands: bool) -> None:
        """May be repeated: the first one counts."""
        if not self._answered.is_set():
            self._stands = stands
            self._answered.set()

    # --- the thread

    def wait(self, go_on: Callable[[], bool]) -> bool:
        """Ask for it. False when it will not, or `go_on`, which is called meanwhile, says no."""
        try:
            self._loop.call_soon_threadsafe(self._asked.set)
        except RuntimeError:
            return False  # the loop is closed
        while not self._answered.wait(_LOOK_S):
            if not go_on():
                return False
        return self._stands
