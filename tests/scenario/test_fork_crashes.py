"""Stop the world at every crash point of a create that goes on from a template, or takes a waiting machine over."""

from __future__ import annotations

import copy
import dataclasses

import pytest

from tests.fakes.crashes import Bomb, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES, waiting, with_template
from vmdriver.model.phase import Phase


async def prepared(pool: int) -> World:
    """A host with a sandbox, its template, and nobody's process."""
    driver = await with_template(warm_pool=pool)
    await waiting(driver, pool)
    world = driver.world
    await driver.close()
    return world


async def create_second(world: World, bomb: Bomb, pool: int) -> bool:
    """True if the process was killed on the way."""
    settings = dataclasses.replace(TEMPLATES, warm_pool=pool)
    driver = FakeDriver(world, bomb, settings=settings)

    async def play() -> None:
        await waiting(driver, pool)
        await driver.manager.create(spec("second"), None)
        await driver.settled()
        await waiting(driver, pool)

    if not await played_until_crash(driver, bomb, play):
        return False
    await driver.inside.end_filler()
    return True


async def check(world: World, pool: int) -> None:
    """The next process: the sandbox comes up if it was accepted, and all can go."""
    settings = dataclasses.replace(TEMPLATES, warm_pool=pool)
    driver = FakeDriver(world, settings=settings)
    await driver.manager.recover()
    if not driver.knows("second"):
        await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    assert driver.phase("first") is Phase.RUNNING
    record = driver.record("second")
    assert world.root_layers[record.plan.domain] == record.layers[-1]
    assert set(record.layers) <= world.files
    assert world.marks[record.plan.domain].endswith("/second")
    await waiting(driver, pool)
    await driver.manager.stop("second", "")
    await driver.manager.start("second", "")
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING, "its disk is there"
    for name in ("second", "first"):
        await driver.manager.delete(name, "")
    await driver.close()
    kept = {f"file {t.layer}" for t in driver.manager.templates.listed()}
    assert world.objects() == kept, "only the template is left"


@pytest.mark.parametrize("pool", [0, 1])
async def test_a_crash_at_any_crash_point_of_a_fork_is_recovered_from(
    pool: int,
) -> None:
    ready = await prepared(pool)
    trial = copy.deepcopy(ready)
    bomb = Bomb(trial)
    assert not await create_second(trial, bomb, pool)
    assert bomb.passed > 15
    for at in range(bomb.passed):
        world = copy.deepcopy(ready)
        assert await create_second(world, Bomb(world, at), pool), f"no crash at {at}"
        await check(world, pool)
