"""A workload that writes whenever it is not held still, and whoever is killed, stopped or asked twice meanwhile: what it
wrote is in a snapshot or after it, and never lost.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import pytest

from tests.fakes.crashes import Bomb, BombAtCalls, played_until_crash
from tests.fakes.driver import FakeDriver
from tests.fakes.ledgers import held_objects
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import operations, running
from vmdriver.errors import AlreadyExists, DriverError
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.phase import DomainState, Phase
from vmdriver.model.record import SandboxRecord

KEPT = ("snapshot", "live-snapshot", "disk-snapshot", "suspend")
BOUND_S = 8.0


class Busy:
    """A workload that has its turn at every crash point and before every call. What it writes to is noted."""

    def __init__(self, world: World, then: Bomb) -> None:
        self.world, self._then = world, then
        self.first: dict[str, int] = {}
        """Layer -> the first tick that was written to it."""
        fails = world.fail

        def has_its_turn(call: str) -> bool:
            self.write()
            return fails(call)

        world.fail = has_its_turn

    async def __call__(self, crash_point: str) -> None:
        self.write()
        await self._then(crash_point)

    def write(self) -> None:
        world = self.world
        for domain, state in world.domains.items():
            runs = state is DomainState.RUNNING and domain not in world.ended
            if runs and domain not in world.frozen and domain in world.root_layers:
                layer = world.root_layers[domain]
                assert layer not in world.frozen_layers, "nobody writes to it any more"
                world.ticks[domain] += 1
                world.lived.append((domain, world.ticks[domain]))
                world.written[layer] = world.ticks[domain]
                self.first.setdefault(layer, world.ticks[domain])


def record_of(world: World) -> SandboxRecord:
    return SandboxRecord.model_validate_json(world.records["s1"])


def check_moments(world: World, busy: Busy) -> None:
    """Each snapshot is of one moment, and the layers are one time after the other, without a gap."""
    record = record_of(world)
    for entry in record.snapshots:
        newest = max(world.written.get(layer, 0) for layer in entry.layers)
        if entry.memory is not None:
            assert world.memories[entry.memory.directory] == newest, "two moments"
        after = [busy.first[layer] for layer in record.layers if layer in busy.first]
        later = [tick for tick in after if tick > newest]
        assert not later or min(later) == newest + 1, "a moment is in no layer"
    if record.memory is not None:
        kept = world.memories[record.memory.directory]
        assert kept == max(world.written.get(layer, 0) for layer in record.layers)


def check_nothing_is_lost(world: World) -> None:
    layers = record_of(world).layers
    newest = max((tick for _, tick in world.lived), default=0)
    assert set(layers) <= world.files
    assert max((world.written.get(layer, 0) for layer in layers), default=0) == newest


def settings_for(how: str) -> Settings:
    return dataclasses.replace(SETTINGS, live_snapshots=how == "live-snapshot")


async def keep(driver: FakeDriver, how: str) -> None:
    found, worker = operations(driver)
    if how == "suspend":
        await found.suspend(worker)
    else:
        await found.create_snapshot(worker, "a", disk_only=how == "disk-snapshot")


async def up(world: World) -> None:
    await (await running(world)).close()


async def killed_at(
    at: int, how: str, kind: type[Bomb], *, machine_too: str
) -> tuple[World, Busy] | None:
    """The driver is killed there; None when it has come to its end before. The machine goes on, ends with it, or goes on
    and ends before the next driver.
    """
    world = World()
    await up(world)
    bomb = kind(world, at)
    busy = Busy(world, bomb)
    driver = FakeDriver(world, busy, settings=settings_for(how))

    async def play() -> None:
        await driver.settled()
        await keep(driver, how)
        await driver.settled()

    if not await played_until_crash(driver, bomb, play):
        check_moments(world, busy)
        check_nothing_is_lost(world)
        return None
    world.fail = lambda _call: False
    if machine_too != "at once":
        for _ in range(3):
            busy.write()
    if machine_too != "never":
        for domain in tuple(world.domains):
            world.qemu_ends(domain)
    return world, busy


@pytest.mark.parametrize(
    ("kind", "machine_too"),
    [
        (Bomb, "never"),
        (BombAtCalls, "never"),
        (Bomb, "at once"),
        (BombAtCalls, "later"),
    ],
)
@pytest.mark.parametrize("how", KEPT)
async def test_what_is_written_around_a_kill_is_kept_and_of_one_moment(
    how: str, kind: type[Bomb], machine_too: str
) -> None:
    for at in itertools.count():
        found = await killed_at(at, how, kind, machine_too=machine_too)
        if found is None:
            assert at > 15, "it was killed nowhere"
            return
        world, busy = found
        driver = FakeDriver(world)
        await driver.manager.recover()
        await driver.settled()
        check_nothing_is_lost(world)
        check_moments(world, busy)
        assert not world.frozen, (at, "a workload was left frozen")
        assert not world.writing, (at, "its memory is being written for nobody")
        assert DomainState.PAUSED not in world.domains.values(), at
        assert not [d for d in world.checkpoints if d.endswith("capture.part")]
        if machine_too == "never" and driver.phase() is not Phase.SUSPENDED:
            assert driver.phase() is Phase.RUNNING, at
            busy.write()
            check_nothing_is_lost(world)
        assert world.objects() == held_objects(world)
        await driver.manager.delete("s1", "")
        assert world.objects() == set()
        await driver.close()


class Bell(Bomb):
    """Rings at one crash point; everybody else has a turn then. Nobody is killed."""

    async def __call__(self, crash_point: str) -> None:
        if self.passed == self.at:
            self.exploded.set()
            for _ in range(3):
                await asyncio.sleep(0)
        self.passed += 1


@pytest.mark.parametrize("what", ["cancel", "stop", "delete"])
@pytest.mark.parametrize("how", KEPT)
async def test_who_asked_goes_or_the_sandbox_is_ended_at_any_point_of_it(
    how: str, what: str
) -> None:
    for at in itertools.count():
        world = World()
        await up(world)
        bell = Bell(world, at)
        busy = Busy(world, bell)
        driver = FakeDriver(world, busy, settings=settings_for(how))
        await driver.manager.recover()
        await driver.settled()
        asked = asyncio.create_task(keep(driver, how))
        rung = asyncio.create_task(bell.exploded.wait())
        await asyncio.wait({asked, rung}, return_when=asyncio.FIRST_COMPLETED)
        reached = bell.exploded.is_set()
        async with asyncio.timeout(BOUND_S):
            if what == "cancel":
                asked.cancel()
            elif what == "stop":
                await driver.manager.stop("s1", "")
            else:
                await driver.manager.delete("s1", "")
            await asyncio.gather(asked, return_exceptions=True)
            await driver.settled()
        if what != "delete":
            check_nothing_is_lost(world)
            check_moments(world, busy)
            assert not world.frozen, at
            assert not world.writing, at
            await driver.manager.delete("s1", "")
        assert world.objects() == set(), at
        await driver.close()
        rung.cancel()
        if not reached:
            assert at > 15, "nothing was cut off"
            return


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")])
@pytest.mark.parametrize("only", [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("how", ["snapshot", "live-snapshot"])
async def test_two_at_once_are_taken_one_after_the_other(
    names: tuple[str, str], only: tuple[bool, bool], how: str
) -> None:
    world = World()
    await up(world)
    busy = Busy(world, Bomb(world))
    driver = FakeDriver(world, busy, settings=settings_for(how))
    await driver.manager.recover()
    await driver.settled()
    found, worker = operations(driver)
    taken = await asyncio.gather(
        *(
            found.create_snapshot(worker, name, disk_only=disk_only)
            for name, disk_only in zip(names, only, strict=True)
        ),
        return_exceptions=True,
    )
    failed = [error for error in taken if isinstance(error, DriverError)]
    assert [type(error) for error in failed] == [AlreadyExists] * (
        2 - len(set(names))
    ), taken
    await driver.settled()
    assert {entry.name for entry in record_of(world).snapshots} == set(names)
    assert len(record_of(world).layers) == 1 + len(set(names))
    check_moments(world, busy)
    check_nothing_is_lost(world)
    assert not world.frozen
    await driver.close()
