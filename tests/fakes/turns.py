"""Has calls of a fake driver that are under way at one time come to their ends in a chosen order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.fakes.driver import FakeDriver
from tests.fakes.world import Crash


class Turns:
    """Of the next call of each of these ("port.method"): none ends before all are under way, and then one after the
    other; after the first `free` of them they wait until `open`. The first `early` of those that wait have had their
    effect by then.
    """

    def __init__(
        self, driver: FakeDriver, order: Sequence[str], free: int, early: int = 0
    ) -> None:
        self.ended: list[str] = []
        self._order, self._free, self._early = list(order), free, early
        self._begun = 0
        self._world = driver.world
        self._changed = asyncio.Condition()
        self._held = asyncio.Event()
        for call in order:
            self._put_between(driver, call)

    async def held(self) -> None:
        """As many have ended as may, and all others wait."""
        async with asyncio.timeout(5):
            await self._held.wait()

    async def open(self) -> None:
        """They go on, in that order; where the driver was killed, to no effect."""
        async with self._changed:
            self._free = len(self._order)
            self._changed.notify_all()

    def _put_between(self, driver: FakeDriver, call: str) -> None:
        port, name = call.split(".")
        adapter = getattr(driver.inside.ports, port)
        real = getattr(adapter, name)

        async def in_turn(*arguments: Any, **more: Any) -> None:
            setattr(adapter, name, real)
            place = self._order.index(call)
            early = self._free <= place < self._free + self._early
            try:
                if early:
                    await real(*arguments, **more)
                await self._turn(place)
                if self._world.dead:
                    raise Crash(call)
                if not early:
                    await real(*arguments, **more)
            finally:
                await self._ends(call)

        setattr(adapter, name, in_turn)

    async def _turn(self, place: int) -> None:
        async with self._changed:
            self._begun += 1
            self._look()
            await self._changed.wait_for(lambda: self._may_go_on(place))

    def _may_go_on(self, place: int) -> bool:
        all_begun = self._begun == len(self._order)
        return all_begun and len(self.ended) == place < self._free

    async def _ends(self, call: str) -> None:
        async with self._changed:
            self.ended.append(call)
            self._look()

    def _look(self) -> None:
        if self._begun == len(self._order) and len(self.ended) == self._free:
            self._held.set()
        self._changed.notify_all()
