"""Two sandboxes on the same layers, and a kill at any point of what is done to either: the other one's
files stay.
"""

from __future__ import annotations

import contextlib

import pytest

from tests.fakes.crashes import Bomb, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import held_objects
from tests.fakes.world import World
from vmdriver.errors import DriverError
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.model.phase import Phase

SEQUENCES = {
    "the source loses its snapshot, is merged and deleted": (
        *("create s1", "snapshot s1", "fork", "tick s1", "tick s2", "forget s1"),
        *("stop s1", "delete s1", "tick s2"),
    ),
    "the fork has a snapshot too, returns to it and is deleted": (
        *("create s1", "tick s1", "snapshot s1", "fork", "tick s2", "snapshot s2"),
        *("tick s2", "return s2", "delete s2", "return s1", "tick s1"),
    ),
}


async def perform(driver: FakeDriver, step: str) -> None:
    """As whoever asks again after a crash: what is done already is no error."""
    manager = driver.manager
    verb, _, name = step.partition(" ")
    source = {"from_snapshot": "name-s1/a"}
    with contextlib.suppress(DriverError):
        match verb:
            case "create":
                await manager.create(spec(name), None)
            case "fork":
                await manager.create(spec("s2", driver_config=source), None)
            case "stop":
                await manager.stop(name, "")
            case "delete":
                await manager.delete(name, "")
            case _:
                await operate(driver, verb, name)
    await driver.settled()
    check(driver)


async def operate(driver: FakeDriver, verb: str, name: str) -> None:
    found = Operations(driver.manager)
    worker = found.find(name)
    if verb == "snapshot":
        # A fork's ticks begin anew, those in its layers are of its source.
        await found.create_snapshot(worker, "a", disk_only=name == "s2")
    elif verb == "forget":
        await found.delete_snapshot(worker, "a")
    elif verb == "return":
        await found.restore_snapshot(worker, "a")
    elif worker.sandbox.record.phase is Phase.RUNNING:
        driver.memory.tick(worker.sandbox.record.plan.domain)


def check(driver: FakeDriver) -> None:
    """Every sandbox has all of its layers, and what its workload wrote to them last."""
    world = driver.world
    assert not world.damaged, "somebody wrote to what they stand on"
    for record in driver.records():
        needed = set(record.layers).union(*(e.layers for e in record.snapshots))
        assert needed <= world.files, f"{record.id} misses {needed - world.files}"
        if record.phase is Phase.RUNNING:
            domain = record.plan.domain
            assert world.root_layers[domain] == record.layers[-1]
            wrote = max(world.written.get(layer, 0) for layer in record.layers)
            assert wrote >= world.ticks[domain], f"{record.id} lost what it wrote"


async def run_until_crash(world: World, bomb: Bomb, steps: tuple[str, ...]) -> bool:
    driver = FakeDriver(world, bomb)

    async def play() -> None:
        for step in steps:
            await perform(driver, step)

    return await played_until_crash(driver, bomb, play)


@pytest.mark.parametrize("name", SEQUENCES)
async def test_a_kill_at_any_point_costs_neither_its_files(name: str) -> None:
    steps = SEQUENCES[name]
    world = World()
    bomb = Bomb(world)
    assert not await run_until_crash(world, bomb, steps)
    assert bomb.passed > 100
    for at in range(bomb.passed):
        world = World()
        assert await run_until_crash(world, Bomb(world, at), steps), f"no crash at {at}"
        driver = FakeDriver(world)
        await driver.manager.recover()
        await driver.settled()
        check(driver)
        for step in steps:
            gone = step.endswith(" s1") and not driver.knows()
            if not gone:
                await perform(driver, step)
        assert world.objects() == held_objects(world)
        await driver.close()
