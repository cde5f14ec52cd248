"""Tells watchers what changes. Lives in the loop's thread, so that a list and what
follows it have no gap between.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vmdriver.model.condition import PlatformEvent, SandboxStatus

GONE_S = 900.0
"""Longer than a gateway takes to come back or to look for itself (contract §2.6: 300 s)."""
MOST_GONE = 1024
_MOST_RECENT = 50


@dataclass(frozen=True)
class Changed:
    """A sandbox as it is now."""

    status: SandboxStatus


@dataclass(frozen=True)
class Deleted:
    """A sandbox is gone."""

    sandbox_id: str


@dataclass(frozen=True)
class Happened:
    """A platform event of a sandbox."""

    sandbox_id: str
    event: PlatformEvent


Notice = Changed | Deleted | Happened


class Subscription:
    """One watcher's bounded queue. When it is full the watcher has lost its place, and
    is told so after what is in it.
    """

    def __init__(self, first: Iterable[Notice], limit: int) -> None:
        self._backlog = deque(first)
        self._queue: asyncio.Queue[Notice] = asyncio.Queue(limit)
        self.fell_behind = False
        self._wake = asyncio.Event()
        self.closed = False

    def offer(self, notice: Notice) -> None:
        """Queue a notice; the first that does not fit is the last that is looked at."""
        if self.fell_behind or self.closed:
            return
        try:
            self._queue.put_nowait(notice)
        except asyncio.QueueFull:
            self.fell_behind = True
        self._wake.set()

    def close(self) -> None:
        """End the stream after what is queued."""
        self.closed = True
        self._wake.set()

    async def next(self) -> Notice | None:
        """The next notice; None at the end (closed) or when the watcher fell behind."""
        if self._backlog:
            return self._backlog.popleft()
        while self._queue.empty():
            if self.fell_behind or self.closed:
                return None
            self._wake.clear()
            await self._wake.wait()
        return self._queue.get_nowait()


class Broadcaster:
    """Every watcher gets the full list first, then every notice."""

    def __init__(
        self, current: Callable[[], Iterable[SandboxStatus]], limit: int = 1024
    ) -> None:
        self._current = current
        self._limit = limit
        self._subscriptions: set[Subscription] = set()
        self._gone: OrderedDict[str, float] = OrderedDict()
        self._recent: deque[Happened] = deque(maxlen=_MOST_RECENT)
        self._closed = asyncio.Event()

    def subscribe(self) -> Subscription:
        """A new watcher. List and registration happen without anything in between. What has
        gone of late is told again: the watcher may have been away just then, and waits for it.
        """
        present = list(self._current())
        gone = [Deleted(name) for name in self._gone_of_late({s.id for s in present})]
        subscription = Subscription(
            [*gone, *(Changed(s) for s in present)], self._limit
        )
        self._subscriptions.add(subscription)
        return subscription

    def _gone_of_late(self, present: set[str]) -> list[str]:
        oldest = time.monotonic() - GONE_S
        for name, at in list(self._gone.items()):
            if at < oldest or name in present:
                del self._gone[name]
        return list(self._gone)

    def recall(self, gone: Mapping[str, float]) -> None:
        """Of an earlier driver, which may have been killed before it told anybody: ids, and how
        many seconds ago they went.
        """
        now = time.monotonic()
        oldest_first = sorted(gone.items(), key=lambda item: -item[1])
        for name, age_s in oldest_first[-MOST_GONE:]:
            self._gone[name] = now - age_s

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget a watcher."""
        self._subscriptions.discard(subscription)

    def watchers(self) -> int:
        """How many there are now."""
        return len(self._subscriptions)

    def recent(self) -> Sequence[Happened]:
        """The last platform events of all sandboxes, oldest first."""
        return tuple(self._recent)

    def publish(self, notice: Notice) -> None:
        """Offer a notice to every watcher. Never waits."""
        if isinstance(notice, Happened):
            self._recent.append(notice)
        if isinstance(notice, Changed):
            self._gone.pop(notice.status.id, None)
        if isinstance(notice, Deleted):
            self._gone[notice.sandbox_id] = time.monotonic()
            if len(self._gone) > MOST_GONE:
                self._gone.popitem(last=False)
        for subscription in self._subscriptions:
            subscription.offer(notice)

    def close(self) -> None:
        """End every stream."""
        self._closed.set()
        for subscription in self._subscriptions:
            subscription.close()

    async def closed_within(self, seconds: float) -> bool:
        """Whether streams end; waits that long for it."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return False
        return True
