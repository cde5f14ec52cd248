"""Wishes that meet: each is decided on what is asked for at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.fakes.crashes import Bomb
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import Crash, World
from vmdriver.errors import DriverError, NotFound, Refused
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord


class SlowDisk:
    """A crash point at which saving a record takes a moment, and says that it has begun."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.slow = False

    async def __call__(self, crash_point: str) -> None:
        if crash_point == "record:before-save" and self.slow:
            self.began.set()
            for _ in range(20):
                await asyncio.sleep(0)


async def suspended(disk: SlowDisk, **driver_config: str) -> FakeDriver:
    driver = FakeDriver(World(), disk)
    await driver.manager.recover()
    await driver.manager.create(spec(driver_config=driver_config), None)
    await driver.settled()
    found = Operations(driver.manager)
    await found.suspend(found.find("s1"))
    return driver


async def gone(driver: FakeDriver) -> None:
    if driver.knows():
        await driver.gone()
    assert not driver.sandboxes()
    assert driver.world.objects() == set()
    assert driver.world.records == {}


OTHERS: dict[str, Callable[[FakeDriver], Awaitable[None]]] = {
    "stop": lambda d: d.manager.stop("s1", ""),
    "start": lambda d: d.manager.start("s1", ""),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_nothing_that_comes_after_a_delete_undoes_it(
    other: str, turns: int
) -> None:
    """While the machine is being resumed; the delete is still being written when it comes."""
    disk = SlowDisk()
    driver = await suspended(disk)
    await driver.manager.start("s1", "")
    disk.slow = True
    deleting = asyncio.create_task(driver.manager.delete("s1", ""))
    for _ in range(turns):
        await asyncio.sleep(0)
    later = asyncio.create_task(OTHERS[other](driver))
    assert await deleting is True
    try:
        await later
    except DriverError as error:
        assert isinstance(error, Refused | NotFound)
    await gone(driver)
    await driver.close()


async def test_a_delete_whose_noting_is_under_way_is_final_already() -> None:
    disk = SlowDisk()
    driver = await suspended(disk)
    disk.slow = True
    deleting = asyncio.create_task(driver.manager.delete("s1", ""))
    await disk.began.wait()
    with pytest.raises(Refused, match="being deleted"):
        await driver.manager.start("s1", "")
    assert await deleting is True
    await gone(driver)
    await driver.close()


@pytest.mark.parametrize("wish", ["stop", "delete"])
@pytest.mark.parametrize("mode", ["shutdown", "suspend"])
async def test_a_suspension_that_fails_keeps_what_was_wished_meanwhile(
    wish: str, mode: str
) -> None:
    """An operator suspends; the gateway stops or deletes while the memory is written, and then
    that fails.
    """
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(driver_config={"on_stop": mode}), None)
    await driver.settled()
    begun, go_on = asyncio.Event(), asyncio.Event()
    real = driver.memory.capture

    async def capture(domain: str, memory: str, memory_mib: int) -> object:
        begun.set()
        await go_on.wait()
        world.fail = lambda call: call.startswith("capture")
        return await real(domain, memory, memory_mib)

    driver.memory.capture = capture  # type: ignore[method-assign]
    found = Operations(driver.manager)
    suspending = asyncio.create_task(found.suspend(found.find("s1")))
    await begun.wait()
    manager = driver.manager
    wishing = asyncio.create_task(
        manager.stop("s1", "") if wish == "stop" else manager.delete("s1", "")
    )
    while not (driver.record().stop_anyway or driver.record().intent is Intent.DELETED):
        await asyncio.sleep(0)
    go_on.set()
    await wishing
    with pytest.raises(DriverError):
        await suspending
    if wish == "delete":
        await gone(driver)
    else:
        assert driver.phase() is Phase.STOPPED
        assert not world.domains
        assert driver.record().intent is not Intent.RUNNING
    await driver.close()


async def test_a_return_to_a_snapshot_does_not_undo_a_stop_that_came_after_it() -> None:
    disk = SlowDisk()
    driver = FakeDriver(World(), disk)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    found = Operations(driver.manager)
    worker = found.find("s1")
    await found.create_snapshot(worker, "a", disk_only=True)
    disk.slow = True
    stopping = asyncio.create_task(driver.manager.stop("s1", ""))
    await disk.began.wait()
    with pytest.raises(Refused, match="stopped meanwhile|being stopped"):
        await found.restore_snapshot(worker, "a")
    await stopping
    assert driver.phase() is Phase.STOPPED
    assert not worker.sandbox.record.reverting
    await driver.close()


async def test_a_delete_that_was_accepted_survives_every_crash_and_later_stop() -> None:
    """Delete while it resumes, a stop behind it, and the process killed at every crash point that
    follows: the next driver deletes.
    """
    at = runs = 0
    while True:
        world = World()
        disk = SlowDisk()
        driver = await suspended_in(world, disk)
        bomb = Bomb(world, at)
        disk_call = disk.__call__

        async def both(name: str, bomb: Bomb = bomb, disk_call: object = disk_call):  # type: ignore[no-untyped-def]
            await disk_call(name)  # type: ignore[operator]
            await bomb(name)

        await driver.manager.start("s1", "")
        driver.aim(both)
        deleting = asyncio.create_task(driver.manager.delete("s1", ""))
        later = asyncio.create_task(driver.manager.stop("s1", ""))
        exploded = asyncio.create_task(bomb.exploded.wait())
        await asyncio.wait({deleting, exploded}, return_when=asyncio.FIRST_COMPLETED)
        finished = not bomb.exploded.is_set()
        noted = "s1" not in world.records or (
            SandboxRecord.model_validate_json(world.records["s1"]).intent
            is Intent.DELETED
        )
        for task in (deleting, later, exploded):
            task.cancel()
        await asyncio.gather(deleting, later, exploded, return_exceptions=True)
        await driver.kill()
        if noted:
            runs += 1
            second = FakeDriver(world)
            await second.manager.recover()
            await gone(second)
            await second.close()
        if finished:
            break
        at += 1
    assert runs > 10


async def suspended_in(world: World, disk: SlowDisk) -> AimedDriver:
    driver = AimedDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    found = Operations(driver.manager)
    await found.suspend(found.find("s1"))
    disk.slow = True
    return driver


class AimedDriver(FakeDriver):
    """Its crash points mean something from a moment on."""

    def __init__(self, world: World) -> None:
        self._target: Callable[[str], Awaitable[None]] | None = None
        super().__init__(world, self._pass)

    def aim(self, target: Callable[[str], Awaitable[None]]) -> None:
        self._target = target

    async def _pass(self, crash_point: str) -> None:
        if self.world.dead:
            raise Crash(crash_point)
        if self._target is not None:
            await self._target(crash_point)
