"""Stop the world at every crash point of a create that goes on from a template, or takes a waiting machine over; at
every call of what makes a template, a machine that waits, or a sandbox from another's snapshot; and in the whole life
of a sandbox whose disk stands on others' layers.
"""

from __future__ import annotations

import copy
import dataclasses

import pytest

from tests.fakes.crashes import Bomb, BombAtCalls, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.lives import perform
from tests.scenario.stage import (
    TEMPLATES,
    eventually,
    template_files,
    waiting,
    with_template,
)
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
        bomb.defuse()

    return await played_until_crash(driver, bomb, play)


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
    for name in ("second", "first"):
        tap = driver.plan(name).network.lease.tap
        assert driver.network_guard.keeps(tap), "nobody sees to its rules"
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


@pytest.mark.parametrize("bombs", [Bomb, BombAtCalls])
@pytest.mark.parametrize("pool", [0, 1])
async def test_a_crash_at_any_crash_point_of_a_fork_is_recovered_from(
    pool: int, bombs: type[Bomb]
) -> None:
    ready = await prepared(pool)
    trial = copy.deepcopy(ready)
    bomb = bombs(trial)
    assert not await create_second(trial, bomb, pool)
    assert bomb.passed > 15
    for at in range(bomb.passed):
        world = copy.deepcopy(ready)
        assert await create_second(world, bombs(world, at), pool), f"no crash at {at}"
        await check(world, pool)


WAITING = dataclasses.replace(TEMPLATES, warm_pool=1)


async def build_first(world: World, bomb: Bomb) -> bool:
    """A sandbox is booted, its template made, and a machine waits. True if the process was killed on the way."""
    driver = FakeDriver(world, bomb, settings=WAITING)

    async def play() -> None:
        await driver.manager.create(spec("first"), None)
        await driver.settled()
        await eventually(driver.manager.templates.listed, "no template was built")
        await waiting(driver, 1)
        bomb.defuse()

    return await played_until_crash(driver, bomb, play)


async def check_built(world: World) -> None:
    """The next process has a whole template, the same or another, and nothing of one that is not whole."""
    driver = FakeDriver(world, settings=WAITING)
    await driver.manager.recover()
    if not driver.knows("first"):
        await driver.manager.create(spec("first"), None)
    await driver.settled()
    templates = driver.manager.templates
    if not templates.listed() and not driver.inside.builds():
        # The one that was booted runs already: only another boot makes one.
        await driver.manager.create(spec("another"), None)
        await driver.settled()
    await eventually(templates.listed, "there is no template")
    await waiting(driver, 1)
    (template,) = templates.listed()
    assert template_files(world) == {template.layer, template.directory}
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    assert driver.plan("second").template == template.key
    for name in driver.sandboxes():
        await driver.manager.delete(name, "")
    await templates.remove(template.key)
    await eventually(lambda: template.layer not in world.files, "its layer stays")
    await driver.close()
    assert world.objects() == set()
    assert template_files(world) == set()


async def test_a_kill_before_any_call_of_a_build_leaves_a_whole_template_or_nothing() -> (
    None
):
    world = World()
    bomb = BombAtCalls(world)
    assert not await build_first(world, bomb)
    assert bomb.passed > 40
    for at in range(bomb.passed):
        world = World()
        assert await build_first(world, BombAtCalls(world, at)), f"no crash at {at}"
        await check_built(world)


async def with_snapshot() -> World:
    """s1 runs and has snapshot a, with its memory; nobody's process."""
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    for step in ("create", "tick", "snapshot", "tick"):
        await perform(driver, step)
    await driver.close()
    return world


async def create_from_snapshot(world: World, bomb: Bomb) -> bool:
    """True if the process was killed on the way."""
    driver = FakeDriver(world, bomb)

    async def play() -> None:
        await driver.manager.create(FROM_SNAPSHOT, None)
        await driver.settled()
        bomb.defuse()

    return await played_until_crash(driver, bomb, play)


FROM_SNAPSHOT = spec("s2", driver_config={"from_snapshot": "name-s1/a"})


@pytest.mark.parametrize("bombs", [Bomb, BombAtCalls])
async def test_a_crash_in_a_create_from_a_snapshot_costs_neither_of_the_two_its_disk(
    bombs: type[Bomb],
) -> None:
    ready = await with_snapshot()
    trial = copy.deepcopy(ready)
    bomb = bombs(trial)
    assert not await create_from_snapshot(trial, bomb)
    assert bomb.passed > 10
    for at in range(bomb.passed):
        world = copy.deepcopy(ready)
        assert await create_from_snapshot(world, bombs(world, at)), f"no crash at {at}"
        driver = FakeDriver(world)
        await driver.manager.recover()
        if not driver.knows("s2"):
            await driver.manager.create(FROM_SNAPSHOT, None)
        await driver.settled()
        for name in ("s1", "s2"):
            assert driver.phase(name) is Phase.RUNNING
            assert set(driver.record(name).layers) <= world.files
        await perform(driver, "revert")
        assert driver.phase("s1") is Phase.RUNNING
        await driver.manager.delete("s1", "")
        await driver.manager.stop("s2", "")
        await driver.manager.start("s2", "")
        await driver.settled()
        assert driver.phase("s2") is Phase.RUNNING
        assert set(driver.record("s2").layers) <= world.files
        await driver.manager.delete("s2", "")
        assert world.objects() == set()
        assert not world.checkpoints
        await driver.close()


LIFE = (
    *("create", "tick", "snapshot", "tick", "suspend", "resume", "tick", "revert"),
    *("forget", "stop", "start", "tick"),
)
"""Of s1, which goes on from the template of `first`."""


async def live(world: World, bomb: Bomb) -> bool:
    """True if the process was killed on the way."""
    driver = FakeDriver(world, bomb, settings=TEMPLATES)

    async def play() -> None:
        for step in LIFE:
            await perform(driver, step)

    return await played_until_crash(driver, bomb, play)


@pytest.mark.parametrize("start", range(4))
async def test_a_crash_in_the_life_of_a_fork_costs_nobody_a_layer(start: int) -> None:
    ready = await prepared(0)
    (template,) = (path for path in ready.files if "/template-" in path)
    trial = copy.deepcopy(ready)
    bomb = Bomb(trial)
    assert not await live(trial, bomb)
    assert bomb.passed > 150
    for at in range(start, bomb.passed, 4):
        world = copy.deepcopy(ready)
        assert await live(world, Bomb(world, at)), f"no crash at {at}"
        driver = FakeDriver(world, settings=TEMPLATES)
        await driver.manager.recover()
        if not driver.knows():
            await driver.manager.create(spec(), None)
        await driver.settled()
        await driver.manager.start("s1", "")
        await driver.settled()
        record = driver.record()
        assert record.phase is Phase.RUNNING
        assert record.layers[0] == template
        assert world.root_layers[driver.plan().domain] == record.layers[-1]
        for layers in (record.layers, *(kept.layers for kept in record.snapshots)):
            assert set(layers) <= world.files, f"lost by a crash at {at}"
        await perform(driver, "tick")
        await driver.manager.delete("s1", "")
        assert template in world.files
        await driver.manager.create(spec("second"), None)
        await driver.settled()
        assert driver.plan("second").template
        for name in ("first", "second"):
            await driver.manager.delete(name, "")
        await driver.close()
        assert world.objects() == {f"file {template}"}
