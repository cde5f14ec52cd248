"""QEMU is killed at every crash point, and libvirt learns of it only later: nothing is stuck, lost or left over."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from tests.fakes.crashes import Bomb, Killer, played_until_crash
from tests.fakes.driver import FakeDriver
from tests.fakes.ledgers import held_objects
from tests.fakes.world import World
from tests.scenario.lives import SEQUENCES, perform
from vmdriver.errors import DriverError
from vmdriver.model.phase import DomainState, Phase
from vmdriver.model.record import SandboxRecord

LIVES = [
    *(
        "create-stop-start",
        "create-stop-delete",
        "suspend",
        "snapshot",
        "snapshot-revert",
    ),
    *("snapshot-remove", "disk-snapshot", "suspended-revert"),
]


async def lived(driver: FakeDriver, steps: tuple[str, ...]) -> None:
    """Every step; whoever asks may be refused, since the machine ended meanwhile."""
    for step in steps:
        dead = set(driver.world.domains) & driver.world.ended
        if step == "tick" and dead:
            continue
        with contextlib.suppress(DriverError):
            await perform(driver, step)
        await driver.settled()


async def at_rest(driver: FakeDriver) -> None:
    """A record may say RUNNING of a machine that is gone, until its worker has looked: what must
    hold is waited for.
    """
    deadline = time.monotonic() + 10
    while True:
        await driver.settled()
        try:
            domains = driver.world.domains.values()
            seen = sum(state is DomainState.RUNNING for state in domains)
            assert seen == sum(r.phase is Phase.RUNNING for r in driver.records())
            check_nothing_is_half_done(driver.world)
            return
        except AssertionError:
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


def check_nothing_is_half_done(world: World) -> None:
    held = held_objects(world)
    assert world.objects() == held
    assert not world.frozen, "a workload was left frozen"
    assert DomainState.PAUSED not in world.domains.values()
    assert not [d for d in world.checkpoints if d.endswith("capture.part")]


def check_nothing_written_is_lost(world: World) -> None:
    """The newest that a guest wrote is in the layers that its sandbox stands on."""
    for text in world.records.values():
        layers = SandboxRecord.model_validate_json(text).layers
        assert set(layers) <= world.files
        newest = max((tick for _, tick in world.lived), default=0)
        assert (
            max((world.written.get(layer, 0) for layer in layers), default=0) == newest
        )


async def count(steps: tuple[str, ...]) -> int:
    killer = Killer(World())
    driver = FakeDriver(killer.world, killer)
    await driver.manager.recover()
    await lived(driver, steps)
    await driver.close()
    return killer.passed


@pytest.mark.parametrize("name", LIVES)
async def test_a_machine_that_dies_at_any_crash_point_leaves_nothing_half_done(
    name: str,
) -> None:
    steps = SEQUENCES[name]
    total = await count(steps)
    died = 0
    for at in range(total):
        world = World()
        killer = Killer(world, at)
        driver = FakeDriver(world, killer)
        await driver.manager.recover()
        await lived(driver, steps)
        died += bool(killer.killed)
        if driver.knows():
            await lived(driver, ("stop",))
            assert driver.phase() in {Phase.STOPPED, Phase.SUSPENDED}, killer.killed
            await at_rest(driver)
            if "revert" not in steps:
                check_nothing_written_is_lost(world)
            await lived(driver, ("start",))
            assert driver.phase() is Phase.RUNNING, killer.killed
            await at_rest(driver)
            await driver.manager.delete("s1", "")
        assert world.objects() == set()
        assert world.records == {}
        await driver.close()
    assert died >= 5, "a machine must have been there to die"


@pytest.mark.parametrize("name", ["suspend", "snapshot", "snapshot-revert"])
@pytest.mark.parametrize("later", [1, 2, 5])
async def test_a_machine_dies_and_a_moment_later_the_driver(
    name: str, later: int
) -> None:
    """The next driver's libvirt knows what the last one's did not."""
    steps = SEQUENCES[name]
    for at in range(0, await count(steps), 2):
        world = World()
        killer, bomb = Killer(world, at), Bomb(world, at + later)

        async def both(crash_point: str, killer=killer, bomb=bomb) -> None:
            await killer(crash_point)
            await bomb(crash_point)

        driver = FakeDriver(world, both)

        async def play(driver: FakeDriver = driver) -> None:
            await lived(driver, steps)

        await played_until_crash(driver, bomb, play)
        driver = FakeDriver(world)
        await driver.manager.recover()
        await at_rest(driver)
        if driver.knows():
            if "revert" not in steps:
                check_nothing_written_is_lost(world)
            await lived(driver, ("stop", "start"))
            assert driver.phase() is Phase.RUNNING, killer.killed
            await driver.manager.delete("s1", "")
        assert world.objects() == set()
        await driver.close()


@pytest.mark.parametrize("closed", ["layers", "/"])
async def test_a_path_that_qemu_cannot_pass_fails_the_start_with_a_clear_word(
    closed: str,
) -> None:
    world = World(closed={closed})
    driver = FakeDriver(world)
    await driver.manager.recover()
    await perform(driver, "create")
    record = driver.record()
    assert record.phase is Phase.FAILED
    assert record.failure is not None
    assert "Permission denied" in record.failure.message
    assert not world.domains
    world.closed.clear()
    await perform(driver, "start")
    assert driver.phase() is Phase.RUNNING
    await driver.manager.delete("s1", "")
    assert world.objects() == set()
    await driver.close()
