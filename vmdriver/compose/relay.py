"""The base's events, to everyone who watches us. A base that goes away is waited for: watchers
hear nothing meanwhile, which says that nothing has changed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.base import Asked, Base, BaseRejected
from vmdriver.errors import DriverError
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.engine.broadcast import GONE_S, MOST_GONE

_log = logging.getLogger(__name__)
MOST, MOST_BYTES = 10_000, 32 * 2**20
"""Of events that one watcher has not taken yet. Each may have as many bytes as a message."""
_LIST_TIMEOUT_S = 30.0


class Backlog:
    """What one watcher has not taken yet, and then its end."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.bytes = 0

    def offer(self, raw: bytes) -> bool:
        """False: it does not fit, and is the last: there is no gap before the end."""
        events = self._events.qsize()
        if events >= MOST or (events and self.bytes + len(raw) > MOST_BYTES):
            self.end()
            return False
        self._events.put_nowait(raw)
        self.bytes += len(raw)
        return True

    def end(self) -> None:
        """Nothing comes after what is in it."""
        self._events.put_nowait(None)

    async def next(self) -> bytes | None:
        """None: the end."""
        raw = await self._events.get()
        self.bytes -= len(raw or b"")
        return raw


class Relay:
    """One watch of the base, for any number of ours."""

    def __init__(
        self,
        base: Base,
        on_event: Callable[[pb.WatchSandboxesEvent], bytes | None],
        on_list: Callable[[dict[str, pb.DriverSandbox]], Awaitable[None]],
    ) -> None:
        self._base = base
        self._on_event = on_event
        self._on_list = on_list
        self._last: dict[str, bytes] = {}
        self._gone: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        """Id -> when its end was told (monotonic seconds), and how; oldest first."""
        self._watchers: set[Backlog] = set()
        self.connected = asyncio.Event()
        """Set while the base is watched and its list has been read."""

    async def run(self) -> None:
        """For ever; cancellable."""
        failures = 0
        while True:
            try:
                await self._listen()
                failures = 0
            except (BaseRejected, DriverError) as error:
                failures += 1
                _log.info("the base driver's events ended: %s", error)
            except Exception:  # noqa: BLE001 - whatever the base sends, we go on
                failures += 1
                _log.exception("the base driver's events cannot be read")
            self.connected.clear()
            await asyncio.sleep(backoff_s(failures, first_s=0.1, most_s=2.0))

    async def _listen(self) -> None:
        lister = asyncio.create_task(self._relist(), name="relist")
        try:
            async for raw in self._base.watch():
                self._take(raw)
        finally:
            lister.cancel()
            await asyncio.wait({lister})

    async def _relist(self) -> None:
        """A watch says what is there; only a list says what is not there any more."""
        failures = 0
        while True:
            try:
                asked = Asked(timeout_s=_LIST_TIMEOUT_S)
                raw = await self._base.call("ListSandboxes", b"", asked)
                answer = pb.ListSandboxesResponse.FromString(raw)
                await self._on_list({s.id: s for s in answer.sandboxes})
            except (BaseRejected, DriverError) as error:
                failures += 1
                _log.info("the base driver's list cannot be had: %s", error)
            except Exception:  # noqa: BLE001 - as above
                failures += 1
                _log.exception("the base driver's list cannot be read")
            else:
                self.connected.set()
                return
            await asyncio.sleep(backoff_s(failures, first_s=0.1, most_s=2.0))

    def _take(self, raw: bytes) -> None:
        event = pb.WatchSandboxesEvent.FromString(raw)
        changed = self._on_event(event)
        self.publish(event, raw if changed is None else changed)

    def publish(self, event: pb.WatchSandboxesEvent, raw: bytes) -> None:
        """To every watcher; snapshots, and ends of late, are kept for those who come later."""
        kind = event.WhichOneof("payload")
        if kind == "sandbox":
            self._last[event.sandbox.sandbox.id] = raw
            self._gone.pop(event.sandbox.sandbox.id, None)
        elif kind == "deleted":
            self._last.pop(event.deleted.sandbox_id, None)
            self._gone.pop(event.deleted.sandbox_id, None)
            self._gone[event.deleted.sandbox_id] = time.monotonic(), raw
            if len(self._gone) > MOST_GONE:
                self._gone.popitem(last=False)
        for backlog in list(self._watchers):
            if not backlog.offer(raw):
                self._watchers.discard(backlog)

    def known(self) -> set[str]:
        """Ids of what the base has told us of."""
        return set(self._last)

    def watchers(self) -> int:
        """How many watch us."""
        return len(self._watchers)

    async def watch(self) -> AsyncGenerator[bytes | None, None]:
        """First everything, what has gone of late before it, then every event. None: this watcher
        fell behind, and must watch again.
        """
        backlog = Backlog()
        self._watchers.add(backlog)
        try:
            for raw in [*self._gone_of_late(), *self._last.values()]:
                yield raw
            while True:
                found = await backlog.next()
                yield found
                if found is None:
                    return
        finally:
            self._watchers.discard(backlog)

    def _gone_of_late(self) -> list[bytes]:
        """A watcher may have been away just then, and waits for it."""
        oldest = time.monotonic() - GONE_S
        while self._gone and next(iter(self._gone.values()))[0] < oldest:
            self._gone.popitem(last=False)
        return [raw for _, raw in self._gone.values()]

    def close(self) -> None:
        """End every watch; what is told from now on, of calls under way, is told to nobody."""
        for backlog in self._watchers:
            backlog.end()
        self._watchers.clear()
