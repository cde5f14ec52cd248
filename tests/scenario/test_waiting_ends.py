"""Machines that wait, whose QEMU ends: nobody is given one, and another one comes."""

from __future__ import annotations

import asyncio
import dataclasses
from itertools import pairwise

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES, eventually, waiting, with_template
from vmdriver.lifecycle.templates import pool
from vmdriver.model.phase import DomainState, Phase


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is replaced at once."""
    monkeypatch.setattr(pool, "REPLACED_S", 0.001)


async def with_one(count: int = 1) -> tuple[FakeDriver, str]:
    """A driver with machines that wait, and the domain of the first."""
    driver = await with_template(warm_pool=count)
    await waiting(driver, count)
    return driver, driver.inside.waiting()[0].plan.domain


def end(driver: FakeDriver, domain: str, state: DomainState = DomainState.OFF) -> None:
    """Its QEMU ends, and libvirt says that something has changed."""
    driver.world.domains[domain] = state
    driver.hypervisor.hint(domain)


@pytest.mark.parametrize("state", [DomainState.OFF, DomainState.CRASHED])
async def test_one_that_has_ended_is_replaced_and_leaves_nothing(
    state: DomainState,
) -> None:
    driver, domain = await with_one()
    world, before = driver.world, driver.inside.waiting()[0]
    end(driver, domain, state)
    await eventually(
        lambda: [w.plan.domain for w in driver.inside.waiting()] not in ([], [domain]),
        "it was not replaced",
    )
    assert domain not in world.domains
    assert before.plan.network.lease.tap not in world.taps
    assert before.plan.disk("root").path not in world.files
    assert len([o for o in driver.inside.leases() if o.startswith("warm-")]) == 1
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    assert driver.plan("second").template
    await driver.close()


async def test_one_that_only_changes_goes_on_waiting() -> None:
    driver, domain = await with_one()
    for _ in range(3):
        driver.hypervisor.hint(domain)
    driver.hypervisor.hint("nobody's")
    for _ in range(50):
        await asyncio.sleep(0)
    assert [one.plan.domain for one in driver.inside.waiting()] == [domain]
    await driver.close()


async def test_one_that_ended_while_it_was_made_does_not_wait() -> None:
    """libvirt told of it before it was one of those that wait."""
    settings = dataclasses.replace(TEMPLATES, warm_pool=1)
    driver, ended = FakeDriver(World(), settings=settings), list[str]()

    def die(call: str) -> bool:
        if call.startswith("memory ") and not ended:
            ended.append(call.split()[1])
            driver.world.domains[ended[0]] = DomainState.OFF
        return False

    driver.world.fail = die
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await eventually(
        lambda: driver.inside.waiting() and ended[0] not in driver.world.domains,
        "it waits, and is not there",
    )
    assert [one.plan.domain for one in driver.inside.waiting()] != ended
    await driver.close()


async def test_one_that_ends_while_it_is_claimed_is_the_sandboxs() -> None:
    """Its launch finds out, and boots instead: nothing is ended twice, or under it."""
    driver, domain = await with_one()
    create = asyncio.create_task(driver.manager.create(spec("second"), None))
    await eventually(lambda: not driver.inside.waiting(), "it was not claimed")
    end(driver, domain)
    await create
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    await waiting(driver, 1)
    await driver.close()


async def test_where_all_end_they_are_replaced_more_and_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool, "REPLACED_S", 0.02)
    driver, _ = await with_one()
    loop, seen = asyncio.get_running_loop(), list[float]()
    for _ in range(4):
        await waiting(driver, 1)
        seen.append(loop.time())
        end(driver, driver.inside.waiting()[0].plan.domain)
        await waiting(driver, 0)
    await waiting(driver, 1)
    seen.append(loop.time())
    pauses = [after - before for before, after in pairwise(seen)]
    assert all(p >= 0.02 * 2**n for n, p in enumerate(pauses)), pauses
    await driver.close()


async def test_a_driver_that_ends_does_not_replace_it() -> None:
    driver, domain = await with_one()
    end(driver, domain)
    await driver.close()
    world = driver.world
    assert not [name for name in world.domains if "/warm-" in world.marks[name]]
    assert not driver.inside.waiting()


async def test_where_each_ends_while_another_is_made_none_is_made_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is always one too few, and somebody who is making one."""
    monkeypatch.setattr(pool, "REPLACED_S", 60.0)
    settings = dataclasses.replace(TEMPLATES, warm_pool=2)
    driver, made = FakeDriver(World(), settings=settings), list[str]()

    def end_those_before(call: str) -> bool:
        if call.startswith("memory "):
            for one in driver.inside.waiting():
                end(driver, one.plan.domain)
            made.append(call)
        return False

    driver.world.fail = end_those_before
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await eventually(lambda: len(made) > 1, "no second one was made")
    for _ in range(5000):
        await asyncio.sleep(0)
    assert len(made) <= 3, "the first, the second, and one beside the second"
    await driver.close()
