"""Machines that stand still without our doing, and launches whose QEMU was killed."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.limits import limit
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import BOUND_S, eventually
from vmdriver.errors import HypervisorError, Refused
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.engine.broadcast import Happened, Subscription
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import DomainState, Intent, Phase
from vmdriver.model.wishes import Wish


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, stalled_look_s=0.05, settle_s=0.01)


async def started(**settings: Any) -> tuple[FakeDriver, str]:
    """A driver with one running sandbox; the name of its domain."""
    world = World()
    driver = FakeDriver(world, settings=dataclasses.replace(SETTINGS, **settings))
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    return driver, next(iter(world.domains))


def fill_the_disk(driver: FakeDriver, domain: str) -> None:
    driver.world.free_bytes = 0
    driver.world.domains[domain] = DomainState.STALLED
    driver.hypervisor.hint(domain)


async def told(subscription: Subscription) -> list[str]:
    subscription.close()
    reasons = []
    while (notice := await subscription.next()) is not None:
        reasons += [notice.event.reason] if isinstance(notice, Happened) else []
    return reasons


async def test_a_full_disk_is_shown_and_the_machine_goes_on_when_there_is_space() -> (
    None
):
    driver, domain = await started()
    subscription = driver.broadcaster.subscribe()
    fill_the_disk(driver, domain)
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    assert driver.shown()[1] == "DependenciesNotReady"
    assert "no space" in driver.shown()[2]
    await asyncio.sleep(0.3)
    assert driver.world.domains[domain] is DomainState.STALLED
    assert f"go on {domain}" not in driver.world.calls, "not tried without space"
    driver.world.free_bytes = 2**30
    await eventually(lambda: driver.shown()[0] == "Ready=True", "goes on")
    assert driver.world.domains[domain] is DomainState.RUNNING
    assert await told(subscription) == ["DiskFull", "GoesOn"]
    await driver.close()


async def test_little_space_is_tried_for_as_well_but_rarely() -> None:
    """It may be all that there will be."""
    driver, domain = await started()
    fill_the_disk(driver, domain)
    driver.world.free_bytes = 2**20 - 1
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    await asyncio.sleep(0.2)
    assert f"go on {domain}" not in driver.world.calls, "nothing could be written"
    driver.world.free_bytes = 8 * 2**20
    await eventually(lambda: driver.shown()[0] == "Ready=True", "goes on")
    fill_the_disk(driver, domain)
    driver.world.free_bytes = 8 * 2**20
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    await asyncio.sleep(0.3)
    assert driver.world.calls.count(f"go on {domain}") == 1, "that was not for long"
    driver.world.free_bytes = 2**30
    await eventually(lambda: driver.shown()[0] == "Ready=True", "goes on")
    await driver.close()


async def test_a_disk_that_only_seems_to_have_space_is_tried_more_and_more_rarely() -> (
    None
):
    driver, domain = await started()
    subscription = driver.broadcaster.subscribe()
    go_on, tries = driver.memory.go_on, [0]

    async def in_vain(name: str) -> None:
        tries[0] += 1
        driver.world.free_bytes = 0  # as a quota would have it
        await go_on(name)
        driver.world.free_bytes = 2**30

    driver.memory.go_on = in_vain
    fill_the_disk(driver, domain)
    driver.world.free_bytes = 2**30
    await asyncio.sleep(0.6)
    assert 1 < tries[0] < 8
    assert driver.shown()[0] == "Ready=False"
    assert await told(subscription) == ["DiskFull"], "told once"
    await driver.close()


async def test_a_disk_too_full_for_records_is_shown_too() -> None:
    driver, domain = await started()
    driver.world.fail = lambda call: call in {"save record", "append to journal"}
    fill_the_disk(driver, domain)
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    driver.world.fail = lambda _call: False
    await driver.close()


@pytest.mark.parametrize("end", ["stop", "delete", "suspending stop"])
async def test_a_machine_that_stands_still_can_be_ended(end: str) -> None:
    on_stop = "suspend" if end == "suspending stop" else "shutdown"
    driver, domain = await started(on_stop=on_stop)
    fill_the_disk(driver, domain)
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    async with asyncio.timeout(BOUND_S):
        if end == "delete":
            assert await driver.manager.delete("s1", "")
            assert driver.world.objects() == set()
        else:
            await driver.manager.stop("s1", "")
            assert driver.phase() is Phase.STOPPED
    assert f"flush {domain}" not in driver.world.calls, "it could not answer"
    await driver.close()


async def test_an_operators_suspend_and_snapshot_are_refused_at_once() -> None:
    driver, domain = await started()
    fill_the_disk(driver, domain)
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    found = Operations(driver.manager)
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(Refused):
            await found.create_snapshot(found.find("s1"), "a", disk_only=False)
        await driver.wish("s1", Wish.SUSPEND)
        await driver.until("s1", lambda record: record.intent is Intent.RUNNING)
    assert driver.phase() is Phase.RUNNING
    assert driver.world.domains[domain] is DomainState.STALLED, "its memory is kept"
    driver.world.free_bytes = 2**30
    await eventually(lambda: driver.shown()[0] == "Ready=True", "goes on")
    await driver.close()


async def test_the_next_driver_sees_it_and_adopts_it_when_it_goes_on() -> None:
    driver, domain = await started()
    fill_the_disk(driver, domain)
    await driver.kill()
    driver.world.tables.clear()
    following = FakeDriver(driver.world)
    await following.manager.recover()
    await eventually(lambda: following.shown()[0] == "Ready=False", "shown")
    driver.world.free_bytes = 2**30
    await eventually(lambda: following.shown()[0] == "Ready=True", "goes on")
    await eventually(lambda: bool(driver.world.tables), "adopted, with its firewall")
    await following.close()


async def test_what_an_operator_paused_is_shown_and_left_alone() -> None:
    driver, domain = await started()
    driver.world.domains[domain] = DomainState.PAUSED
    driver.hypervisor.hint(domain)
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    assert "virsh" in driver.shown()[2]
    await asyncio.sleep(0.2)
    assert driver.world.domains[domain] is DomainState.PAUSED
    driver.world.domains[domain] = DomainState.RUNNING
    driver.hypervisor.hint(domain)
    await eventually(lambda: driver.shown()[0] == "Ready=True", "goes on")
    await driver.close()


async def test_a_workload_frozen_under_a_machine_that_stalled_is_thawed_in_the_end() -> (
    None
):
    driver, domain = await started()
    found, guest = Operations(driver.manager), driver.guest
    freeze = guest.freeze

    async def stall_in_freeze(name: str, limit_s: float) -> str:
        await freeze(name, limit_s)
        guest.freeze = freeze
        driver.world.free_bytes = 0
        driver.world.domains[name] = DomainState.STALLED
        raise HypervisorError("the guest did not answer")

    guest.freeze = stall_in_freeze
    job = asyncio.create_task(
        found.create_snapshot(found.find("s1"), "a", disk_only=False)
    )
    await asyncio.sleep(0.3)
    assert domain in driver.world.frozen
    driver.world.free_bytes = 2**30
    await eventually(lambda: not driver.world.frozen, "thawed")
    with pytest.raises(Exception, match="guest"):
        await job
    await driver.close()


# --- launches that are cut off


def killed_in_launch(driver: FakeDriver, times: int, *, late: bool) -> list[int]:
    """QEMU is killed that many times: while libvirt starts it, or `late`, while the guest boots."""
    start, tries = driver.hypervisor.start, [0]

    async def start_and_die(plan: Any, mark: str) -> None:
        tries[0] += 1
        if tries[0] > times:
            await start(plan, mark)
            return
        if not late:
            driver.world.domains[plan.domain] = DomainState.OFF
            driver.world.marks[plan.domain] = mark
            raise HypervisorError("qemu unexpectedly closed the monitor")
        await start(plan, mark)
        driver.world.reports[plan.disk("status").path] = GuestReport()
        driver.world.domains[plan.domain] = DomainState.OFF

    driver.hypervisor.start = start_and_die
    return tries


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("times", "phase"), [(1, Phase.RUNNING), (2, Phase.FAILED)])
async def test_a_qemu_killed_in_its_launch_is_tried_once_more(
    late: bool, times: int, phase: Phase
) -> None:
    driver = FakeDriver(World())
    tries = killed_in_launch(driver, times, late=late)
    await driver.manager.recover()
    subscription = driver.broadcaster.subscribe()
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert driver.phase() is phase
    assert tries[0] == 2
    record = driver.record()
    assert record.crash_restarts == 0, "it had not come up"
    assert (record.failure is None) == (phase is Phase.RUNNING)
    assert (await told(subscription)).count("LaunchCutOff") == 1
    # A start that is asked for anew is tried twice again.
    await driver.manager.stop("s1", "")
    tries = killed_in_launch(driver, 1, late=late)
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await driver.close()


async def test_a_guest_that_says_that_it_failed_is_not_started_again() -> None:
    driver = FakeDriver(World())
    start, tries = driver.hypervisor.start, [0]

    async def fail(plan: Any, mark: str) -> None:
        tries[0] += 1
        await start(plan, mark)
        driver.world.reports[plan.disk("status").path] = GuestReport("failed")
        driver.world.domains[plan.domain] = DomainState.OFF

    driver.hypervisor.start = fail
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert (driver.phase(), tries[0]) == (Phase.FAILED, 1)
    await driver.close()
