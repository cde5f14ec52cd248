"""The state directory is full: nothing stands still for that reason, and all of it is made good when
there is space.
"""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import held_objects
from tests.fakes.world import World
from vmdriver.errors import DriverError
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.model.phase import DomainState, Phase

_WRITES = ("save record", "append to journal", "rewrite journal")


class Disk:
    """Full from a call of the host on."""

    def __init__(self, world: World, full_from: str) -> None:
        self.full, self._from = False, full_from
        world.fail = self

    def __call__(self, call: str) -> bool:
        self.full = self.full or (bool(self._from) and call.startswith(self._from))
        return self.full and call.startswith(_WRITES)

    def has_space(self) -> None:
        self.full, self._from = False, ""


@pytest.mark.parametrize("full_from", ["pause", "capture", "switch"])
@pytest.mark.parametrize("what", ["snapshot", "suspend"])
async def test_a_machine_does_not_stay_frozen(what: str, full_from: str) -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    operations = Operations(driver.manager)
    worker = operations.find("s1")
    (domain,) = world.domains
    disk = Disk(world, full_from)
    if what == "snapshot":
        asked = asyncio.create_task(
            operations.create_snapshot(worker, "a", disk_only=False)
        )
    else:
        asked = asyncio.create_task(operations.suspend(worker))
    if not (what == "suspend" and full_from == "switch"):  # which does not switch
        async with asyncio.timeout(5):
            while not disk.full:
                await asyncio.sleep(0.001)
            while world.frozen or world.domains[domain] is not DomainState.RUNNING:
                await asyncio.sleep(0.001)
    assert world.starts == {domain: 1}
    disk.has_space()
    with contextlib.suppress(DriverError):
        await asked
    await driver.settled()
    if what == "snapshot":
        assert driver.phase() is Phase.RUNNING
        await operations.create_snapshot(worker, "b", disk_only=False)
    if driver.phase() is Phase.SUSPENDED:
        await operations.resume(worker)
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert world.starts == {domain: 1}, "its memory was never lost"
    assert world.frozen == set()
    assert world.objects() == held_objects(world)
    await driver.close()


async def test_a_stop_ends_the_machine_and_is_told_when_there_is_space() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    disk = Disk(world, "destroy")
    stopping = asyncio.create_task(driver.manager.stop("s1", ""))
    async with asyncio.timeout(5):
        while world.domains or world.taps or world.tables:
            await asyncio.sleep(0.001)
    assert not stopping.done()
    disk.has_space()
    await stopping
    assert driver.phase() is Phase.STOPPED
    assert world.objects() == held_objects(world)
    await driver.close()


async def test_a_delete_under_way_needs_no_space() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    await driver.manager.stop("s1", "")
    Disk(world, "remove layers/")
    assert await driver.manager.delete("s1", "")
    assert world.records == {}
    assert world.objects() == set()
    await driver.close()
