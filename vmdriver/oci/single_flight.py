"""One piece of work that several may wait for: it is done once, everybody hears how far it is, and
it ends when the last one has gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vmdriver.lifecycle.ports.images import ImageProgress, ProgressSink

T = TypeVar("T")


@dataclass
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    listeners: list[ProgressSink] = field(default_factory=list)
    last: ImageProgress | None = None

    def tell(self, progress: ImageProgress) -> None:
        self.last = progress
        for listener in self.listeners:
            listener(progress)


class Flights(Generic[T]):
    """By key. What failed is forgotten at once."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    async def join(
        self,
        key: str,
        work: Callable[[ProgressSink], Awaitable[T]],
        listener: ProgressSink,
    ) -> T:
        """Begin the work, or wait for who has begun it. Raises what the work raises."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._begin(key, work)
        elif flight.last is not None:
            listener(flight.last)
        flight.listeners.append(listener)
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.listeners.remove(listener)
            if not flight.listeners and not flight.task.done():
                self._flights.pop(key, None)  # whoever comes now begins anew
                flight.task.cancel()
                await asyncio.wait({flight.task})
                if not flight.task.cancelled():
                    flight.task.exception()  # nobody is left to be told

    def _begin(
        self, key: str, work: Callable[[ProgressSink], Awaitable[T]]
    ) -> _Flight[T]:
        async def whole() -> T:
            try:
                return await work(flight.tell)
            finally:
                if self._flights.get(key) is flight:
                    del self._flights[key]

        flight: _Flight[T] = _Flight(asyncio.create_task(whole(), name=f"image {key}"))
        self._flights[key] = flight
        return flight
