"""Looks that may take long, or never end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


class LastSeen(Generic[T]):
    """One look at a time, and what the last one that ended has seen. Who asks waits `patience_s`
    for a new one, which goes on without him; `every_s`: seconds between two of them, which are
    more where looking would take more than that `share` of the time.
    """

    def __init__(
        self,
        what: str,
        first: T,
        *,
        every_s: float = 0.0,
        patience_s: float = 2.0,
        share: float = 1.0,
    ) -> None:
        self._what, self._seen = what, first
        self._every_s, self._patience_s = every_s, patience_s
        self._share = share
        self._begun_at = self._next_at = -every_s
        self._under_way: asyncio.Task[None] | None = None

    async def look(self, see: Callable[[], Awaitable[T]]) -> T:
        """What is seen now, or was. What `see` raises is told to the log."""
        if self._under_way is None:
            if time.monotonic() < self._next_at:
                return self._seen
            self._begun_at = time.monotonic()
            self._next_at = self._begun_at + self._every_s
            self._under_way = asyncio.create_task(self._see(see), name=self._what)
        await asyncio.wait({self._under_way}, timeout=self._patience_s)
        return self._seen

    async def _see(self, see: Callable[[], Awaitable[T]]) -> None:
        try:
            self._seen = await see()
        except Exception:  # noqa: BLE001 - who watches must not disturb
            _log.exception("metrics of %s could not be looked at", self._what)
        finally:
            took = time.monotonic() - self._begun_at
            rest_s = max(self._every_s, took / self._share)
            self._next_at = self._begun_at + rest_s
            self._under_way = None
