"""What many may be at together, or one alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Shared:
    """Who uses something keeps only him waiting who removes it, and the other way round. Who comes
    while somebody waits to be alone comes after him.
    """

    def __init__(self) -> None:
        self._way_in = asyncio.Lock()
        """Held all the time by who is alone, or waits for that; by others as they come."""
        self._inside = 0
        self._left = asyncio.Event()

    @asynccontextmanager
    async def among(self) -> AsyncIterator[None]:
        """With others."""
        async with self._way_in:
            self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """With nobody."""
        async with self._way_in:
            while self._inside:
                self._left.clear()
                await self._left.wait()
            yield
