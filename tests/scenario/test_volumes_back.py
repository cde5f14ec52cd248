"""Volumes that are put back while others want them, disks become full, or somebody stops the sandbox."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tests.fakes.driver import FakeDriver
from tests.fakes.kept_volumes import (
    AFTER,
    BEFORE,
    DATA,
    MORE,
    check_tidy,
    put_back,
    running,
    take,
    wanting,
    write,
)
from tests.fakes.limits import limit
from tests.fakes.settings import SETTINGS
from tests.fakes.volume_copies import FakeVolumeCopies
from tests.fakes.world import World
from vmdriver.errors import DriverError, Exhausted, Refused
from vmdriver.model.phase import Phase

SOON = dataclasses.replace(SETTINGS, stop_grace_s=0.3)


@pytest.fixture
async def driver() -> AsyncIterator[FakeDriver]:
    driver = FakeDriver(World(), settings=SOON)
    await driver.manager.recover()
    yield driver
    await driver.close()


@pytest.mark.parametrize("ending", ["stop", "suspending stop", "delete"])
async def test_putting_back_stands_in_no_stops_way(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """To copy a large volume takes longer than a stop may."""
    wanted = wanting()
    if ending == "suspending stop":
        config = {**wanted.driver_config, "on_stop": "suspend"}
        wanted = wanted.model_copy(update={"driver_config": config})
    await running(driver, wanted)
    write(driver, BEFORE)
    await take(driver)
    write(driver, AFTER)
    begun = asyncio.Event()

    async def endless(*_: object) -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    limit(monkeypatch, stop_s=0.2)
    monkeypatch.setattr(FakeVolumeCopies, "prepare", endless)
    going_back = asyncio.ensure_future(put_back(driver))
    await begun.wait()
    async with asyncio.timeout(10):
        if ending == "delete":
            await driver.manager.delete("s1", "")
        else:
            await driver.manager.stop("s1", "")
    with pytest.raises(DriverError, match="meanwhile"):
        await going_back
    await driver.settled()
    check_tidy(driver)
    assert driver.world.volumes.content == {DATA: AFTER, MORE: AFTER}
    volumes = driver.core.volumes
    assert not volumes.holders(volumes.find("", "data"))
    if ending != "delete":
        assert driver.phase() is Phase.STOPPED
        told = [h.event.reason for h in driver.broadcaster.recent()]
        assert "NotReverted" in told


async def test_a_disk_with_too_little_space_ends_no_machine(driver: FakeDriver) -> None:
    await running(driver, wanting())
    write(driver, BEFORE)
    await take(driver)
    driver.world.free_bytes = 2**28 + 11
    with pytest.raises(Exhausted, match="snapshot's volumes"):
        await put_back(driver)
    assert driver.phase() is Phase.RUNNING
    driver.world.free_bytes += 1
    await put_back(driver)
    check_tidy(driver)


Meanwhile = Callable[[FakeDriver], Awaitable[object]]


async def started(driver: FakeDriver) -> None:
    await driver.manager.create(wanting("s2"), None)
    await driver.in_phase("s2", Phase.RUNNING)


async def grown(driver: FakeDriver) -> None:
    await driver.manager.volume_jobs.grow("", "data", 128)


@pytest.mark.parametrize("meanwhile", [started, grown])
async def test_what_becomes_of_a_volume_before_it_is_held_counts(
    meanwhile: Meanwhile,
) -> None:
    """Another sandbox that gets it at that moment keeps it: its disk is nobody's to replace."""
    world, done = World(), asyncio.Event()

    async def at(crash_point: str) -> None:
        first = not done.is_set()
        if crash_point == "capture:volumes-back:after-intent" and first:
            await meanwhile(driver)
            done.set()

    driver = FakeDriver(world, at)
    await driver.manager.recover()
    await running(driver, wanting())
    write(driver, BEFORE)
    await take(driver)
    await driver.manager.stop("s1", "")
    write(driver, AFTER)
    going_back = asyncio.ensure_future(put_back(driver))
    await done.wait()
    volumes = driver.core.volumes
    if meanwhile is started:
        while not driver.worker().sandbox.trouble:
            await asyncio.sleep(0.01)
        assert "attached to sandbox s2" in driver.worker().sandbox.trouble
        assert world.volumes.content == {DATA: AFTER, MORE: AFTER}
        assert volumes.holders(volumes.find("", "data")) == {"s2": False}
        await driver.manager.stop("s1", "")
        with pytest.raises(Refused, match="stopped meanwhile"):
            await going_back
    else:
        await going_back
        assert volumes.find("", "data").size_mib == 128
        assert world.volumes.content == {DATA: BEFORE, MORE: BEFORE}
    await driver.settled()
    check_tidy(driver)
    await driver.close()


async def test_copies_of_a_killed_driver_are_removed_when_nothing_writes_to_them() -> (
    None
):
    """Else they would take ever more space that nobody sees."""
    world, begun = World(), asyncio.Event()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await running(driver, wanting())
    domain = driver.plan().domain

    def endless(call: str) -> bool:
        if call == f"look at copies of {domain}":
            world.volumes.uncopied[domain] = 2**30
            begun.set()
        return False

    world.fail = endless
    taking = asyncio.ensure_future(take(driver))
    await begun.wait()
    await driver.kill()
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    world.calls.clear()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    removed = [call.endswith(".raw") for call in world.calls].index(True)
    assert world.calls.index(f"drop copies of {domain}") < removed
    check_tidy(driver)
    await driver.close()
