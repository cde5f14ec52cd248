"""Snapshots whose memory is written while the machine goes on: whatever comes meanwhile, nobody waits for ever, nothing is
left protected, and there is a whole snapshot or none.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable

import pytest

from tests.fakes.driver import FakeDriver
from tests.fakes.settings import SETTINGS
from tests.scenario.stage import eventually, operations, running, ticked
from vmdriver.errors import DriverError
from vmdriver.lifecycle.engine.broadcast import Happened
from vmdriver.lifecycle.engine.resource import FROZEN, PAUSED, WRITTEN
from vmdriver.model.phase import DomainState, Phase

LIVE = dataclasses.replace(SETTINGS, live_snapshots=True)
BOUND_S = 6.0


async def live() -> FakeDriver:
    return await running(settings=LIVE)


async def take(driver: FakeDriver, name: str = "a") -> None:
    found, worker = operations(driver)
    await found.create_snapshot(worker, name, disk_only=False)


def steps_of(driver: FakeDriver, name: str = "a") -> set[str]:
    (entry,) = (e for e in driver.record().snapshots if e.name == name)
    return {step.name for step in entry.steps}


async def being_written(driver: FakeDriver) -> asyncio.Task[None]:
    """A snapshot whose memory QEMU does not get on with writing, however long somebody waits."""
    domain = driver.plan().domain
    call = f"end of writing {domain}"
    driver.world.hanging.hangs = lambda asked: asked == call
    asked = asyncio.create_task(take(driver))
    await eventually(lambda: call in driver.world.hanging.met, "it is not written")
    return asked


def check_none(driver: FakeDriver) -> None:
    """No snapshot, and nothing of one."""
    world = driver.world
    assert not driver.record().snapshots
    assert not world.writing
    assert not world.frozen
    assert not [d for d in world.checkpoints if d.endswith("capture.part")]


async def test_the_workload_goes_on_before_its_memory_is_written() -> None:
    driver = await live()
    domain, world = await ticked(driver), driver.world
    asked = await being_written(driver)
    assert world.domains[domain] is DomainState.RUNNING
    assert domain not in world.frozen
    assert world.root_layers[domain] == driver.record().layers[-1]
    assert len(driver.record().layers) == 2, "the record stands on the new layer"
    later = driver.memory.tick(domain)
    world.hanging.hangs = lambda _: False
    world.hanging.give_up(domain)
    with pytest.raises(DriverError):
        await asked
    check_none(driver)
    assert driver.memory.tick(domain) == later + 1
    await take(driver)
    assert "write" in steps_of(driver)
    found, worker = operations(driver)
    driver.memory.tick(domain)
    await found.restore_snapshot(worker, "a")
    await driver.settled()
    assert world.ticks[driver.plan().domain] == later + 1, "it is of that moment"
    await driver.close()


async def test_a_writing_that_does_not_get_on_ends_and_the_machine_goes_on() -> None:
    driver = await live()
    domain = await ticked(driver)
    asked = await being_written(driver)
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(DriverError):
            await asked
    await driver.settled()
    check_none(driver)
    driver.memory.tick(domain)
    assert not driver.held() & {FROZEN, PAUSED, WRITTEN}
    await driver.close()


@pytest.mark.parametrize("what", ["stop", "delete"])
async def test_who_ends_the_sandbox_does_not_wait_for_the_writing(what: str) -> None:
    driver = await live()
    asked = await being_written(driver)
    begin: Callable[[str, str], Awaitable[object]] = getattr(driver.manager, what)
    async with asyncio.timeout(BOUND_S):
        await begin("s1", "")
        await asyncio.gather(asked, return_exceptions=True)
        await driver.settled()
    assert isinstance(asked.exception(), DriverError)
    if what == "stop":
        check_none(driver)
        assert driver.phase() is Phase.SUSPENDED, "its way to stop"
        await driver.manager.delete("s1", "")
    assert driver.world.objects() == set()
    await driver.close()


async def test_whose_qemu_ends_meanwhile_has_no_half_snapshot() -> None:
    driver = await live()
    domain = driver.plan().domain
    asked = await being_written(driver)
    driver.world.qemu_ends(domain)
    with pytest.raises(DriverError):
        await asked
    driver.world.hanging.hangs = lambda _: False
    driver.hint()
    await driver.settled()
    check_none(driver)
    await driver.manager.delete("s1", "")
    assert driver.world.objects() == set()
    await driver.close()


@pytest.mark.parametrize(
    "fails", ["begin to write", "goes on meanwhile", "end of writing"]
)
async def test_a_writing_that_fails_leaves_the_machine_running_on_its_new_layer(
    fails: str,
) -> None:
    driver = await live()
    domain, world = await ticked(driver), driver.world
    world.fail = lambda call: fails in call
    with pytest.raises(DriverError):
        await take(driver)
    world.fail = lambda _: False
    await driver.settled()
    check_none(driver)
    driver.memory.tick(domain)
    assert world.root_layers[domain] == driver.record().layers[-1]
    await take(driver, "b")
    assert "write" in steps_of(driver, "b")
    await driver.close()


async def test_where_qemu_cannot_it_stands_still_and_each_reason_is_said_once() -> None:
    driver = await live()
    driver.memory.stands_still = "not with this memory"
    subscription = driver.broadcaster.subscribe()
    for name in ("a", "b"):
        await ticked(driver)
        await take(driver, name)
        assert "write" not in steps_of(driver, name)
    assert not [c for c in driver.world.calls if c.startswith("begin to write")]
    driver.memory.stands_still = "nor today"
    await take(driver, "c")
    subscription.close()
    told = []
    while (notice := await subscription.next()) is not None:
        if isinstance(notice, Happened) and notice.event.reason == "MemoryWrittenStill":
            told.append(notice.event)
    first, second = (event.message for event in told)
    assert "not with this memory" in first
    assert "nor today" in second
    await driver.close()


async def test_without_the_setting_nobody_asks() -> None:
    driver = await running()
    await take(driver)
    assert not [c for c in driver.world.calls if c.startswith("ask ")]
    assert "write" not in steps_of(driver)
    await driver.close()


async def test_who_pauses_the_machine_while_it_is_written_has_it_paused() -> None:
    driver = await live()
    domain, world = driver.plan().domain, driver.world
    asked = await being_written(driver)
    world.domains[domain] = DomainState.PAUSED
    world.hanging.hangs = lambda _: False
    world.calls.clear()
    world.hanging.give_up(domain)
    await asyncio.gather(asked, return_exceptions=True)
    await eventually(lambda: driver.shown()[0] == "Ready=False", "it is not seen")
    assert world.domains[domain] is DomainState.PAUSED
    assert f"go on {domain}" not in world.calls
    await driver.manager.delete("s1", "")
    await driver.close()
