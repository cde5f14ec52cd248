"""A machine is made of kept memory while that is compared: nothing of it runs before."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
from typing import Any

import pytest

from tests.fakes.crashes import Bomb, played_until_crash
from tests.fakes.driver import FakeDriver
from tests.fakes.limits import limit
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import BOUND_S, eventually, running, ticked
from vmdriver.errors import DriverError, StorageError
from vmdriver.lifecycle.engine.ledger import MACHINE, replay
from vmdriver.model.phase import DomainState, Phase


async def suspended() -> tuple[World, str]:
    """A workload that has ticked once is kept; its driver has ended. Its domain."""
    driver = await running()
    domain = await ticked(driver)
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.SUSPENDED
    await driver.close()
    return driver.world, domain


def hold_digests(driver: FakeDriver) -> asyncio.Event:
    """They take until it is set."""
    real, go = driver.memory_store.damage, asyncio.Event()

    async def slow(*arguments: Any) -> list[str]:
        await go.wait()
        return await real(*arguments)

    driver.memory_store.damage = slow  # type: ignore[method-assign]
    return go


async def loaded(driver: FakeDriver, domain: str) -> None:
    """Its machine is there, and only the digests are waited for."""
    world = driver.world
    await eventually(
        lambda: world.domains.get(domain) is DomainState.PAUSED, "it is not loaded"
    )
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.domains[domain] is DomainState.PAUSED
    assert driver.phase() is Phase.RESUMING
    memory = driver.record().memory
    assert memory is not None
    assert not memory.consumed


async def resuming() -> tuple[FakeDriver, str, asyncio.Event]:
    """A start is under way, and waits for digests alone: its driver, the domain, what to set."""
    world, domain = await suspended()
    driver = FakeDriver(world)
    go = hold_digests(driver)
    await driver.manager.recover()
    await driver.manager.start("s1", "")
    await loaded(driver, domain)
    return driver, domain, go


async def test_a_machine_is_loaded_meanwhile_and_goes_on_afterwards() -> None:
    driver, domain, go = await resuming()
    world = driver.world
    held = replay([json.loads(line) for line in world.journals["s1"]])[MACHINE]
    assert not held.done, "one that is not yet known to be whole is not held as done"
    go.set()
    await driver.settled()
    assert driver.memory.tick(domain) == 2
    assert world.starts[domain] == 1, "it was not booted"
    await driver.close()


async def test_a_driver_that_is_killed_meanwhile_leaves_a_memory_to_be_loaded_again() -> (
    None
):
    world, domain = await suspended()
    driver = FakeDriver(world, Bomb(world))
    go = hold_digests(driver)
    await driver.manager.recover()
    await driver.manager.start("s1", "")
    await loaded(driver, domain)
    world.dead = True
    go.set()  # of a process that is gone: nothing comes of them
    await driver.kill()
    assert world.domains[domain] is DomainState.PAUSED
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    assert driver.memory.tick(domain) == 2
    assert world.lived == [(domain, 1), (domain, 2)]
    assert world.starts[domain] == 1
    await driver.close()


@pytest.mark.parametrize("ending", ["stop", "delete"])
async def test_a_stop_meanwhile_ends_the_machine_and_costs_no_memory(
    ending: str,
) -> None:
    driver, domain, go = await resuming()
    world = driver.world
    end = driver.manager.stop if ending == "stop" else driver.manager.delete
    asked = asyncio.create_task(end("s1", ""))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    go.set()
    await asked
    assert domain not in world.domains
    if ending == "delete":
        assert world.objects() == set()
    else:
        await driver.manager.start("s1", "")
        await driver.settled()
        assert world.lived[:1] == [(domain, 1)]
        assert driver.memory.tick(domain) == 2
        assert world.starts[domain] == 1
    await driver.close()


@pytest.mark.parametrize("ending", ["stop", "delete"])
@pytest.mark.parametrize("hung", ["digests", "digests and load"])
async def test_no_ending_waits_for_a_disk_that_hangs(
    ending: str, hung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests never come."""
    limit(monkeypatch, cut_off_s=0.05, undo_s=0.05, stop_s=0.1)
    world, domain = await suspended()
    driver = FakeDriver(world)
    go = hold_digests(driver)
    await driver.manager.recover()
    if hung == "digests":
        await driver.manager.start("s1", "")
        await loaded(driver, domain)
    else:
        world.hanging.hangs = lambda call: call == f"load {domain}"
        await driver.manager.start("s1", "")
        await eventually(lambda: f"load {domain}" in world.calls, "no load was begun")
    end = driver.manager.stop if ending == "stop" else driver.manager.delete
    async with asyncio.timeout(BOUND_S):
        await end("s1", "")
    assert domain not in world.domains
    assert not go.is_set()
    assert world.lived == [(domain, 1)], "nothing ran of what was not compared"
    if ending == "delete":
        assert world.objects() == set()
    else:
        assert driver.phase() is Phase.SUSPENDED
        go.set()
        world.hanging.hangs = lambda _call: False
        await driver.manager.start("s1", "")
        await driver.settled()
        assert driver.memory.tick(domain) == 2
        assert world.starts[domain] == 1
    await driver.close()


async def test_a_machine_that_ends_meanwhile_costs_no_memory() -> None:
    """It has not run: another one is made of it."""
    driver, domain, go = await resuming()
    world = driver.world
    world.qemu_ends(domain)
    assert world.notice(domain)
    go.set()
    await driver.settled()
    assert driver.memory.tick(domain) == 2
    assert world.lived == [(domain, 1), (domain, 2)]
    assert world.starts[domain] == 1, "it was not booted"
    assert world.calls.count(f"load {domain}") == 2
    await driver.close()


async def test_two_starts_at_once_load_one_machine() -> None:
    world, domain = await suspended()
    driver = FakeDriver(world)
    go = hold_digests(driver)
    await driver.manager.recover()
    await asyncio.gather(*(driver.manager.start("s1", "") for _ in range(3)))
    await loaded(driver, domain)
    await driver.manager.start("s1", "")
    go.set()
    await driver.settled()
    assert driver.memory.tick(domain) == 2
    assert world.calls.count(f"load {domain}") == 1
    await driver.close()


async def test_a_start_takes_a_stop_back_that_came_meanwhile() -> None:
    """What the stop has cut off is begun again."""
    driver, domain, go = await resuming()
    world = driver.world
    stopped = asyncio.create_task(driver.manager.stop("s1", ""))
    await asyncio.sleep(0)
    await driver.manager.start("s1", "")
    with contextlib.suppress(DriverError):  # it was started again meanwhile
        await stopped
    go.set()
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert driver.memory.tick(domain) == 2
    assert world.starts[domain] == 1
    await driver.close()


@pytest.mark.parametrize("policy", ["cold-boot", "fail"])
async def test_memory_that_qemu_refuses_since_it_is_damaged_is_said_to_be_damaged(
    policy: str,
) -> None:
    """At once: QEMU's word alone would be heard three times."""
    settings = dataclasses.replace(SETTINGS, on_restore_failure=policy)
    world, domain = await suspended()
    driver = FakeDriver(world, settings=settings)
    driver.memory.refuses = "VQ 0 size 0x100 Guest index 0x1 inconsistent"
    world.damaged.add("s1/suspended")
    begun = len(world.calls)
    await driver.manager.recover()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert world.calls[begun:].count(f"load {domain}") == 1
    record = driver.record()
    said = record.note if policy == "cold-boot" else record.failure.message
    assert "damaged: memory has changed" in said
    await driver.close()


async def test_memory_that_cannot_be_read_for_a_while_is_loaded_when_it_can() -> None:
    """The digests fail when the machine is there already."""
    world, domain = await suspended()
    driver = FakeDriver(world)
    real, calls = driver.memory_store.damage, itertools.count()

    async def fails_late(*arguments: Any) -> list[str]:
        if next(calls) == 0:
            await eventually(lambda: domain in world.domains, "it is not loaded")
            raise StorageError("checkpoint suspended cannot be read")
        return await real(*arguments)

    driver.memory_store.damage = fails_late  # type: ignore[method-assign]
    await driver.manager.recover()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert world.calls.count(f"load {domain}") == 2
    assert driver.memory.tick(domain) == 2
    assert world.starts[domain] == 1
    await driver.close()


async def resumed_until_crash(bomb: Bomb, policy: str) -> bool:
    settings = dataclasses.replace(SETTINGS, on_restore_failure=policy)
    driver = FakeDriver(bomb.world, bomb, settings=settings)

    async def play() -> None:
        await driver.manager.start("s1", "")
        await driver.settled()

    return await played_until_crash(driver, bomb, play)


@pytest.mark.parametrize("policy", ["cold-boot", "fail"])
async def test_damaged_memory_runs_nothing_wherever_the_driver_is_killed(
    policy: str,
) -> None:
    settings = dataclasses.replace(SETTINGS, on_restore_failure=policy)
    for at in itertools.count():
        world, domain = await suspended()
        world.damaged.add("s1/suspended")
        begun = len(world.calls)
        killed = await resumed_until_crash(Bomb(world, at), policy)
        driver = FakeDriver(world, settings=settings)
        await driver.manager.recover()
        await driver.settled()
        if driver.phase() is Phase.SUSPENDED:  # killed before the wish was noted
            await driver.manager.start("s1", "")
            await driver.settled()
        assert f"go on {domain}" not in world.calls[begun:]
        assert world.ticks[domain] <= 1
        expected = Phase.RUNNING if policy == "cold-boot" else Phase.FAILED
        assert driver.phase() is expected, at
        assert world.starts[domain] == (2 if policy == "cold-boot" else 1)
        if policy == "fail":
            assert domain not in world.domains, "it was ended"
            assert "s1/suspended" in world.checkpoints, "and its memory kept"
        await driver.close()
        if not killed:
            assert at > 20, "it must pass many crash points to mean something"
            return
