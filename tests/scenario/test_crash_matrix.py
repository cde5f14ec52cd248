"""Stop the world at every crash point of every sequence of intents; a new driver must put things right."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

import vmdriver.wiring.core as wiring_module
from tests.fakes.crashes import Bomb, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import held_objects
from tests.fakes.world import World
from tests.scenario.lives import SEQUENCES, perform
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine.ledger import Held, Ledger
from vmdriver.model.phase import Phase

EXPECTED = {
    "create": Phase.RUNNING,
    "start": Phase.RUNNING,
    "stop": Phase.STOPPED,
    "exit": Phase.FAILED,
    "crash": Phase.FAILED,
    "tick": Phase.RUNNING,
    "resume": Phase.RUNNING,
    "cold": Phase.RUNNING,
    "revert": Phase.RUNNING,
}
NEVER_COLD = {"suspend", "suspend-twice", "snapshot", "snapshot-revert"}
"""Sequences in which a crash of the driver never costs the memory."""


def check_time(world: World, name: str) -> None:
    """No moment of the workload is lived twice, unless it was sent back on purpose."""
    if name not in NEVER_COLD:
        return
    assert all(count == 1 for count in world.starts.values()), "the memory was lost"
    ticks = [tick for _, tick in world.lived]
    if "revert" not in SEQUENCES[name]:
        assert ticks == sorted(set(ticks)), f"time ran twice: {ticks}"


async def run_until_crash(world: World, bomb: Bomb, steps: tuple[str, ...]) -> bool:
    """Run the steps in one process; True if it was killed on the way."""
    driver = FakeDriver(world, bomb)

    async def play() -> None:
        await driver.settled()
        for step in steps:
            await perform(driver, step)

    return await played_until_crash(driver, bomb, play)


def check_books(world: World, *, killed: bool) -> None:
    unclaimed = world.objects() - held_objects(world)
    if killed:
        # A layer that nobody needs any more is found by the next driver, by its name.
        own = tuple(f"file layers/{sandbox_id}." for sandbox_id in world.records)
        unclaimed = {name for name in unclaimed if not name.startswith(own)}
    assert not unclaimed, f"on the host, but in no ledger: {unclaimed}"


async def check_recovery(world: World, steps: tuple[str, ...]) -> None:
    """A new process, never crashing: the remaining intents are reached and nothing is left over."""
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    check_books(world, killed=False)
    remaining = steps if driver.knows() or "delete" not in steps else ()
    for step in remaining if remaining else ():
        if step == "create" and driver.knows():
            continue
        await perform(driver, step)
    if steps[-1] == "delete":
        assert not driver.sandboxes()
        assert world.objects() == set()
        assert world.records == {}
    else:
        assert driver.phase() is EXPECTED[steps[-1]]
        held = held_objects(world)
        assert world.objects() == held
        running = [d for d in world.domains if world.domains[d] == "running"]
        assert len(running) == (1 if driver.phase() is Phase.RUNNING else 0)
    assert not world.frozen, "a workload was left frozen"
    assert not [d for d, state in world.domains.items() if state == "paused"]
    assert not [d for d in world.checkpoints if d.endswith("capture.part")]
    await driver.close()


async def count_crash_points(steps: tuple[str, ...]) -> int:
    world = World()
    bomb = Bomb(world)
    assert not await run_until_crash(world, bomb, steps)
    return bomb.passed


@pytest.mark.parametrize("name", SEQUENCES)
async def test_a_crash_at_any_crash_point_is_recovered_from(name: str) -> None:
    steps = SEQUENCES[name]
    total = await count_crash_points(steps)
    assert total > 20, (
        "the sequence must pass many crash points for this test to mean something"
    )
    for at in range(total):
        world = World()
        assert await run_until_crash(world, Bomb(world, at), steps), f"no crash at {at}"
        check_books(world, killed=True)
        await check_recovery(world, steps)
        check_time(world, name)


@pytest.mark.parametrize(
    "name", ["create-stop-start", "create-delete", "suspend", "snapshot-revert"]
)
async def test_two_crashes_in_a_row_are_recovered_from(name: str) -> None:
    steps = SEQUENCES[name]
    total = await count_crash_points(steps)
    runs = 0
    for first in range(0, total, 2 if total < 100 else 7):
        for second in range(0, total, 5 if total < 100 else 11):
            world = World()
            assert await run_until_crash(world, Bomb(world, first), steps)
            left = steps if "s1" in world.records else ("create", *steps[1:])
            rest = tuple(s for s in left if s != "create" or "s1" not in world.records)
            await run_until_crash(world, Bomb(world, second), rest)
            check_books(world, killed=True)
            await check_recovery(world, steps)
            runs += 1
    assert runs > 100


@pytest.mark.parametrize(
    "call",
    [
        "prepare",
        "create overlay",
        "write launch files",
        "make tap",
        "load rules",
        "start",
    ],
)
async def test_a_failing_step_is_undone_and_shown(call: str) -> None:
    world = World()
    world.fail = lambda made: made.startswith(call)
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    record = driver.record()
    assert record.phase is Phase.FAILED
    assert record.failure is not None
    assert record.failure.reason == "ProvisioningFailed"
    assert "on purpose" in record.failure.message
    assert not world.domains
    assert not world.taps
    assert not world.tables
    world.fail = lambda _made: False
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING, "Start after a failed launch tries again"
    await driver.manager.delete("s1", "")
    assert world.objects() == set()
    await driver.close()


@pytest.mark.parametrize(
    "call", ["destroy", "remove rules", "remove tap", "remove s1", "remove record"]
)
async def test_a_release_that_fails_at_first_is_tried_again(call: str) -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    failures = iter([True])
    world.fail = lambda made: made.startswith(call) and next(failures, False)
    assert await driver.manager.delete("s1", "")
    assert next(failures, None) is None, "the failure must have happened"
    assert world.objects() == set()
    assert world.records == {}
    await driver.close()


@pytest.mark.parametrize("ending", ["stop", "delete", "crash"])
async def test_a_machine_that_cannot_be_ended_keeps_what_is_around_it(
    ending: str,
) -> None:
    """It does not run on without its rules, its user is nobody else's, its files are there."""
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    before = world.objects()
    domain = driver.plan().domain
    world.fail = lambda made: made == f"destroy {domain}"
    if ending == "crash":
        world.end_machine(domain, None)
        driver.hypervisor.hint(domain)
        asked = None
    else:
        end = driver.manager.stop if ending == "stop" else driver.manager.delete
        asked = asyncio.create_task(end("s1", ""))  # type: ignore[arg-type]
    await driver.troubled()
    assert "destroy" in driver.trouble()
    assert world.objects() == before
    world.fail = lambda _made: False
    driver.hint()
    if asked is not None:
        await asked
    await driver.settled()
    assert not world.domains
    assert not world.tables
    assert not world.namespaces
    await driver.close()


@pytest.mark.parametrize("ending", ["stop", "delete"])
async def test_a_launch_cancelled_at_any_step_leaves_nothing(ending: str) -> None:
    total = await count_crash_points(("create",))
    for at in range(total):
        world = World()
        reached = asyncio.Event()
        passed = 0

        async def pause(
            _name: str, at: int = at, reached: asyncio.Event = reached
        ) -> None:
            nonlocal passed
            passed += 1
            if passed == at + 1:
                reached.set()
                await asyncio.sleep(0.002)

        driver = FakeDriver(world, pause)
        await driver.manager.recover()
        creating = asyncio.create_task(driver.manager.create(spec(), None))
        await reached.wait()
        await creating
        if ending == "stop":
            await driver.manager.stop("s1", "")
            assert driver.phase() is Phase.STOPPED
            assert not world.domains
            assert not world.taps
        else:
            await driver.manager.delete("s1", "")
            assert world.objects() == set()
        await driver.close()


class JournalsAfterTheEffect(Ledger):
    """A mutant: acts first and writes the intent afterwards."""

    async def acquire(self, key, scope, data, effect, **_: bool):  # type: ignore[no-untyped-def]
        present = self._held.get(key)
        if present is not None and present.done:
            return None
        result = await finished(effect())
        await self._crash_point(f"{key}:after-effect")
        await self._put(Held(key, scope, dict(data)))
        await self._note([key], later=False)
        return result

    async def acquire_together(self, wanted, **_: bool):  # type: ignore[no-untyped-def]
        for one in wanted:
            await self.acquire(one.key, one.held.scope, one.held.data, one.effect)

    acquire_in_turn = acquire_together


class StrikesBeforeTheRelease(Ledger):
    """A mutant: forgets first and undoes afterwards."""

    async def release(self, scope, undo: Callable[[Held], Awaitable[None]]):  # type: ignore[no-untyped-def]
        for entry in reversed(self.held(scope)):
            await self._strike([entry.key])
            await self._crash_point(f"{entry.key}:before-release")
            await finished(undo(entry))
        return []


@pytest.mark.parametrize("mutant", [JournalsAfterTheEffect, StrikesBeforeTheRelease])
async def test_the_matrix_catches_a_wrong_ledger(
    mutant: type[Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring_module, "Ledger", mutant)
    caught = 0
    steps = SEQUENCES["create-stop"]
    for at in range(await count_crash_points(steps)):
        world = World()
        if await run_until_crash(world, Bomb(world, at), steps):
            caught += bool(world.objects() - held_objects(world))
    assert caught, "the mutant went unnoticed"


async def test_the_ledger_on_disk_names_everything_needed_for_the_undo() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    keys = [json.loads(line)["key"] for line in world.journals["s1"]]
    assert keys[0] == "lease"
    assert keys[-1] == "machine"
    assert held_objects(world) == world.objects()
    await driver.close()
