"""Many at one time, or one alone."""

from __future__ import annotations

import asyncio

from vmdriver.host.shared import Shared

LIMIT_S = 20.0


async def turned() -> None:
    """Whoever can go on has done so."""
    for _ in range(20):
        await asyncio.sleep(0)


class Visit:
    """Somebody who is in until told to go."""

    def __init__(self, shared: Shared, *, alone: bool) -> None:
        self.inside, self._go = False, asyncio.Event()
        self.task = asyncio.create_task(self._visit(shared, alone))

    async def _visit(self, shared: Shared, alone: bool) -> None:
        async with shared.alone() if alone else shared.among():
            self.inside = True
            await self._go.wait()
        self.inside = False

    async def goes(self) -> None:
        self._go.set()
        async with asyncio.timeout(LIMIT_S):
            await self.task


async def test_many_are_in_at_one_time() -> None:
    shared = Shared()
    visits = [Visit(shared, alone=False) for _ in range(8)]
    await turned()
    assert all(visit.inside for visit in visits)
    for visit in visits:
        await visit.goes()


async def test_who_is_alone_is_so() -> None:
    shared = Shared()
    first, alone = Visit(shared, alone=False), Visit(shared, alone=True)
    await turned()
    assert first.inside
    assert not alone.inside
    late, other = Visit(shared, alone=False), Visit(shared, alone=True)
    await turned()
    assert not late.inside, "who waits to be alone is not kept from it for ever"
    await first.goes()
    await turned()
    assert alone.inside
    assert not late.inside
    assert not other.inside
    await alone.goes()
    await turned()
    assert late.inside
    assert not other.inside
    await late.goes()
    await turned()
    assert other.inside
    await other.goes()


async def test_who_gives_up_waiting_keeps_nobody_out() -> None:
    shared = Shared()
    first, alone = Visit(shared, alone=False), Visit(shared, alone=True)
    await turned()
    alone.task.cancel()
    await asyncio.wait({alone.task})
    late = Visit(shared, alone=False)
    await turned()
    assert late.inside
    for visit in (first, late):
        visit.task.cancel()
        await asyncio.wait({visit.task})
    last = Visit(shared, alone=True)
    await turned()
    assert last.inside, "who was cancelled is in no more"
    await last.goes()
