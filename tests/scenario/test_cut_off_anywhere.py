"""Whatever is under way, at any point of it: a driver that is told to end, a stop, or a delete. Nothing is left over, and
nobody waits.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.fakes.driver import FakeDriver
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.lives import SEQUENCES, perform
from tests.scenario.stage import TEMPLATES, eventually, running, ticked
from vmdriver.errors import DriverError
from vmdriver.model.phase import Phase

BOUND_S = 8.0
"""On a busy machine; a stop and a delete take milliseconds here."""
LIVES = (
    *("create-stop-start", "suspend-twice", "suspend-cold"),
    *("snapshot-revert", "disk-snapshot"),
)
EVERY = 6
"""Crash points apart: each of these is met by one of the three."""


class Bell:
    """Rings at one crash point, and holds up whoever passes there until others have had their turn."""

    def __init__(self, at: int) -> None:
        self.at, self.passed, self.name = at, 0, ""
        self.rung = asyncio.Event()

    async def __call__(self, crash_point: str) -> None:
        if self.passed == self.at:
            self.name = crash_point
            self.rung.set()
            for _ in range(3):
                await asyncio.sleep(0)
        self.passed += 1


async def up_to(driver: FakeDriver, life: str, bell: Bell) -> bool:
    """Live until the bell rings; False when it has not. Whoever asked has gone then."""

    async def live() -> None:
        for step in SEQUENCES[life]:
            await perform(driver, step)

    living = asyncio.create_task(live())
    rung = asyncio.create_task(bell.rung.wait())
    await asyncio.wait({living, rung}, return_when=asyncio.FIRST_COMPLETED)
    if not bell.rung.is_set():
        await living
    living.cancel()
    rung.cancel()
    await asyncio.gather(living, rung, return_exceptions=True)
    return bell.rung.is_set()


async def removed(driver: FakeDriver) -> None:
    """The sandbox and the templates, and the driver's end."""
    async with asyncio.timeout(BOUND_S):
        await driver.manager.delete("s1", "")
    assert not driver.sandboxes()
    await eventually(lambda: not driver.inside.builds(), "builds have no end")
    for template in driver.manager.templates.listed():
        await driver.manager.templates.remove(template.key)
    async with asyncio.timeout(BOUND_S):
        await driver.close()


async def cut_off(life: str, what: str, at: int, world: World) -> bool:
    """One life, cut off there; False when it does not get that far."""
    settings = TEMPLATES if at // EVERY % 2 else SETTINGS
    bell = Bell(at)
    driver = FakeDriver(world, bell, settings=settings)
    await driver.manager.recover()
    if not await up_to(driver, life, bell):
        await removed(driver)
        return False
    async with asyncio.timeout(BOUND_S):
        if what == "end":
            await driver.close()
            driver = FakeDriver(world, settings=settings)
            await driver.manager.recover()
            await driver.settled()
        elif what == "stop" and driver.knows():
            await driver.manager.stop("s1", "")
            assert not world.domains or TEMPLATES is settings
            assert driver.phase() in {Phase.STOPPED, Phase.SUSPENDED}
            await driver.manager.start("s1", "")
            await driver.settled()
            assert driver.phase() is Phase.RUNNING
    await removed(driver)
    return True


@pytest.mark.parametrize("life", LIVES)
@pytest.mark.parametrize(("what", "first"), [("end", 0), ("stop", 2), ("delete", 4)])
async def test_whatever_is_cut_off_leaves_nothing(
    life: str, what: str, first: int
) -> None:
    at, further = first, True
    while further:
        world = World()
        try:
            further = await cut_off(life, what, at, world)
        except (DriverError, TimeoutError, AssertionError) as error:
            raise AssertionError(f"{what} at crash point {at} of {life}") from error
        assert world.objects() == set(), f"{what} at crash point {at} of {life}"
        assert world.records == {}
        at += EVERY
    assert at > first + EVERY, "it was cut off nowhere"


async def test_a_stop_cuts_a_resume_off_anywhere_and_costs_no_memory() -> None:
    """One that keeps memory: what is not used yet is not written again."""
    for at in itertools.count():
        driver = await running()
        world, domain = driver.world, await ticked(driver)
        await driver.manager.stop("s1", "")
        await driver.close()
        bell = Bell(at)
        driver = FakeDriver(world, bell)
        await driver.manager.recover()
        begun = len(world.calls)
        await driver.manager.start("s1", "")
        settled = asyncio.create_task(driver.settled())
        rung = asyncio.create_task(bell.rung.wait())
        await asyncio.wait({settled, rung}, return_when=asyncio.FIRST_COMPLETED)
        memory = driver.record().memory
        unused = bell.rung.is_set() and memory is not None and not memory.consumed
        await asyncio.gather(settled if not bell.rung.is_set() else asyncio.sleep(0))
        async with asyncio.timeout(BOUND_S):
            await driver.manager.stop("s1", "")
        for task in (settled, rung):
            task.cancel()
        await asyncio.gather(settled, rung, return_exceptions=True)
        assert driver.phase() is Phase.SUSPENDED, at
        assert domain not in world.domains
        written = f"capture {domain}" in world.calls[begun:]
        # A record that is being saved may be the one that says it is used.
        saving = bell.name.startswith("record:")
        assert not (unused and written and not saving), (at, bell.name)
        await driver.manager.start("s1", "")
        await driver.settled()
        assert driver.memory.tick(domain) == 2, (at, bell.name)
        assert world.starts[domain] == 1
        await driver.close()
        if not bell.rung.is_set():
            assert at > 20, "it was cut off nowhere"
            return
