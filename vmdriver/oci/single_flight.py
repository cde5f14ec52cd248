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
class _Flying(Generic[T]):
    task: asyncio.Task[T]
    listeners: list[ProgressSink] = field(default_factory=list)
    last: ImageProgress | None = None

    def tell(self, progress: ImageProgress) -> None:
        self.last = progress
        for listener in self.listeners:
            listener(progress)


class SingleFlight(Generic[T]):
    """Work by key: who asks for what is being done waits for it. What failed is forgotten."""

    def __init__(self) -> None:
        self._flying: dict[str, _Flying[T]] = {}

    async def join(
        self,
        key: str,
        work: Callable[[ProgressSink], Awaitable[T]],
        listener: ProgressSink,
    ) -> T:
        """Begin the work, or wait for who has begun it. Raises what the work raises."""
        flying = self._flying.get(key)
        if flying is None:
            flying = self._begin(key, work)
        elif flying.last is not None:
            listener(flying.last)
        flying.listeners.append(listener)
        try:
            return await asyncio.shield(flying.task)
        finally:
            flying.listeners.remove(listener)
            if not flying.listeners and not flying.task.done():
                self._flying.pop(key, None)  # whoever comes now begins anew
                flying.task.cancel()
                await asyncio.wait({flying.task})
                if not flying.task.cancelled():
                    flying.task.exception()  # nobody is left to be told

    def _begin(
        self, key: str, work: Callable[[ProgressSink], Awaitable[T]]
    ) -> _Flying[T]:
        async def whole() -> T:
            try:
                return await work(flying.tell)
            finally:
                if self._flying.get(key) is flying:
                    del self._flying[key]

        flying: _Flying[T] = _Flying(asyncio.create_task(whole(), name=f"image {key}"))
        self._flying[key] = flying
        return flying
