"""How `new` comes to a host in each way, and that all of it goes again."""

from __future__ import annotations

import dataclasses

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES, eventually, waiting, with_template
from vmdriver.model.phase import Phase

BOUND_S = 5.0


async def host(kind: str) -> World:
    """Where `new` will be made in that way: boot, fork or claim."""
    if kind == "boot":
        return World()
    pool = 1 if kind == "claim" else 0
    driver = await with_template(warm_pool=pool)
    await waiting(driver, pool)
    world = driver.world
    await driver.close()
    return world


async def begun(world: World, kind: str) -> FakeDriver:
    """A driver that is to make it."""
    pool = 1 if kind == "claim" else 0
    settings = dataclasses.replace(TEMPLATES, warm_pool=pool)
    driver = FakeDriver(world, settings=settings)
    await driver.manager.recover()
    if kind != "boot":
        await waiting(driver, pool)
    return driver


async def check_that_all_goes(driver: FakeDriver) -> None:
    """Whoever is left runs, and can be deleted; then nothing is left over."""
    world = driver.world
    if not driver.knows("new"):
        await driver.manager.create(spec("new"), None)
    await driver.manager.start("new", "")
    await driver.settled()
    assert driver.phase("new") is Phase.RUNNING
    users = [record.plan.user.uid for record in driver.records() if record.plan]
    assert len(set(users)) == len(users)
    for name in driver.sandboxes():
        await driver.manager.delete(name, "")
    for template in driver.manager.templates.listed():
        await driver.manager.templates.remove(template.key)
    # What a sandbox had its address from goes after that sandbox.
    await eventually(lambda: not driver.inside.left_over(), "something stays")
    await driver.close()
    assert world.objects() == set()
    assert driver.inside.leases() == []
