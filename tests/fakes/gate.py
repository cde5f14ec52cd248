"""Holds a fake driver still at a chosen point, while a test does something else."""

from __future__ import annotations

import asyncio


class Gate:
    """A crash point that waits. `path`: the crash points that must be passed in this order once
    the gate is shut; at the last of them whoever comes first waits until it is opened.
    """

    def __init__(self) -> None:
        self._path: list[str] = []
        self._reached, self._open = asyncio.Event(), asyncio.Event()

    def shut(self, *path: str) -> None:
        self._path = list(path)
        self._reached, self._open = asyncio.Event(), asyncio.Event()

    async def __call__(self, crash_point: str) -> None:
        if not self._path or crash_point != self._path[0]:
            return
        self._path.pop(0)
        if not self._path:
            self._reached.set()
            await self._open.wait()

    async def reached(self) -> None:
        """Somebody waits at it."""
        async with asyncio.timeout(5):
            await self._reached.wait()

    def open(self) -> None:
        self._open.set()
