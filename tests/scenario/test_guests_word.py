"""A guest whose root says anything on its status disk, again and again: Stop and Delete come first."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from vmdriver.lifecycle.engine.broadcast import Happened
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import Phase

WORDS = [GuestReport(p) for p in ("", "waiting", "started", "probed")]
LAST_WORDS = [GuestReport("failed", reason="no"), GuestReport("exited", 1)]


@contextlib.asynccontextmanager
async def scribbling(
    driver: FakeDriver, words: list[GuestReport]
) -> AsyncIterator[None]:
    """The guest writes one after the other for as long as this lasts."""

    async def scribble() -> None:
        for word in itertools.cycle(words):
            driver.world.reports["s1/status.img"] = word
            for hypervisor_name in list(driver.world.domains):
                driver.hypervisor.hint(hypervisor_name)
            await asyncio.sleep(0)

    task = asyncio.create_task(scribble())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.parametrize("words", [WORDS, [*WORDS, *LAST_WORDS], LAST_WORDS])
@pytest.mark.parametrize("end", ["stop", "delete"])
async def test_a_guest_that_scribbles_is_stopped_and_deleted(
    words: list[GuestReport], end: str
) -> None:
    world = World()
    driver = FakeDriver(
        world, settings=dataclasses.replace(SETTINGS, crash_restarts=100)
    )
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    async with scribbling(driver, words), asyncio.timeout(5):
        await asyncio.sleep(0.05)
        if end == "stop":
            await driver.manager.stop("s1", "")
            assert driver.phase() is Phase.STOPPED
        assert await driver.manager.delete("s1", "")
    assert world.objects() == set()
    await driver.close()


async def test_what_a_guest_takes_back_changes_nothing() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    subscription = driver.broadcaster.subscribe()
    before = list(driver.manager.statuses())
    async with scribbling(driver, WORDS):
        await asyncio.sleep(0.2)
    assert list(driver.manager.statuses()) == before
    subscription.close()
    first = await subscription.next()
    assert first is not None
    assert await subscription.next() is None, "nothing is told of it"
    world.reports["s1/status.img"] = GuestReport("waiting")
    await driver.manager.stop("s1", "")
    assert world.flushed, "its disk is flushed as any other's"
    await driver.close()


async def test_a_machine_that_has_said_something_else_is_still_adopted() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    await driver.kill()
    world.reports["s1/status.img"] = GuestReport("probed")
    world.tables.clear()
    following = FakeDriver(world)
    await following.manager.recover()
    async with asyncio.timeout(5):
        while not world.tables:
            await asyncio.sleep(0.01)
    await following.close()


async def test_a_guest_that_says_what_it_cannot_be_is_awaited_at_leisure() -> None:
    """`waiting` is a template's word: of a sandbox it is as good as nothing."""
    world = World()
    settings = dataclasses.replace(SETTINGS, boot_timeout_s=0.5)
    driver = FakeDriver(world, settings=settings)
    start, observe, looks = driver.hypervisor.start, driver.hypervisor.observe, [0]

    async def start_and_say(plan, mark):
        await start(plan, mark)
        world.reports["s1/status.img"] = GuestReport("waiting")

    async def count(domain):
        looks[0] += 1
        return await observe(domain)

    driver.hypervisor.start, driver.hypervisor.observe = start_and_say, count
    await driver.manager.recover()
    subscription = driver.broadcaster.subscribe()
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert driver.phase() is Phase.FAILED, "the boot's time-out holds for it"
    assert looks[0] < 20
    subscription.close()
    told = []
    while (notice := await subscription.next()) is not None:
        told += [notice.event.reason] if isinstance(notice, Happened) else []
    assert told.count("ProvisioningFailed") == 1
    await driver.close()
