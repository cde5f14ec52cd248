"""A guest whose agent does not answer: root in it can end that. Nothing waits for it for long, and
nothing is shown that nobody knows.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.limits import limit
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import eventually
from vmdriver.errors import DriverError, GuestRefused, HypervisorError, TimedOut
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.engine.broadcast import Happened, Subscription
from vmdriver.model.phase import DomainState, Intent, Phase

FREEZE_S = 10.0
SOON = dataclasses.replace(SETTINGS, freeze_timeout_s=FREEZE_S)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, stalled_look_s=0.02, held_still_s=0.05)


class Guest:
    """Between driver and agent. It answers what is not in `silent`; a wait takes no time, and is
    counted.
    """

    def __init__(self, driver: FakeDriver, *silent: str) -> None:
        self.silent, self.waited_s = set(silent), 0.0
        self._real = driver.guest.heard
        driver.guest.heard = self.heard  # type: ignore[method-assign]

    async def heard(self, verb: str, domain: str, timeout_s: float) -> None:
        if verb not in self.silent:
            return await self._real(verb, domain, timeout_s)
        self.waited_s += timeout_s
        await asyncio.sleep(0)
        raise TimedOut(f"the guest did not answer {verb!r} within {timeout_s:g} s")


async def started(**changes: Any) -> tuple[FakeDriver, str]:
    """A driver with one running sandbox; the name of its domain."""
    driver = FakeDriver(World(), settings=dataclasses.replace(SOON, **changes))
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    return driver, next(iter(driver.world.domains))


async def told(subscription: Subscription) -> list[tuple[str, str]]:
    subscription.close()
    found = []
    while (notice := await subscription.next()) is not None:
        if isinstance(notice, Happened):
            found.append((notice.event.reason, notice.event.message))
    return found


async def keep(driver: FakeDriver, how: str) -> DriverError:
    """An operator suspends it, or takes a snapshot; why that is refused."""
    found = Operations(driver.manager)
    worker = found.find("s1")
    async with asyncio.timeout(5):
        with pytest.raises(DriverError) as caught:
            if how == "suspend":
                await found.suspend(worker)
            else:
                only = how == "disk-snapshot"
                await found.create_snapshot(worker, "a", disk_only=only)
    return caught.value


SYNC_S = 1.0


@pytest.mark.parametrize(
    "error",
    [
        TimedOut("the guest did not answer"),
        GuestRefused("the guest refused to sync: unknown verb"),
        HypervisorError("the guest answers something else"),
    ],
)
@pytest.mark.parametrize("how", ["suspend", "snapshot", "disk-snapshot"])
async def test_a_guest_that_does_not_write_back_before_is_kept_all_the_same(
    how: str, error: DriverError
) -> None:
    """One that is silent at that, one of an earlier release, one that floods."""
    driver, domain = await started()
    real, asked = driver.guest.heard, []

    async def heard(verb: str, domain: str, timeout_s: float) -> None:
        asked.append((verb, timeout_s))
        if verb == "sync":
            raise error
        await real(verb, domain, timeout_s)

    driver.guest.heard = heard  # type: ignore[method-assign]
    found = Operations(driver.manager)
    worker = found.find("s1")
    if how == "suspend":
        await found.suspend(worker)
        assert driver.phase() is Phase.SUSPENDED
    else:
        await found.create_snapshot(worker, "a", disk_only=how == "disk-snapshot")
        assert [e.name for e in driver.record().snapshots] == ["a"]
        assert domain not in driver.world.frozen
    assert [verb for verb, _ in asked[:2]] == ["sync", "freeze"]
    assert asked[0][1] <= SYNC_S, "nobody waits for that for long"
    await driver.close()


@pytest.mark.parametrize("silent", [(), ("sync",)])
@pytest.mark.parametrize("how", ["suspend", "snapshot", "disk-snapshot"])
async def test_an_agent_that_is_dead_costs_an_operator_one_deadline(
    how: str, silent: tuple[str, ...]
) -> None:
    driver, _ = await started()
    subscription = driver.broadcaster.subscribe()
    guest = Guest(driver, *silent, "freeze", "thaw")
    error = await keep(driver, how)
    assert guest.waited_s <= FREEZE_S + 5 + 3, "asked once, and once more in short"
    assert "'freeze'" in error.text(), "the first trouble is the reason"
    record = driver.record()
    assert (record.phase, record.intent) == (Phase.RUNNING, Intent.RUNNING)
    await eventually(lambda: driver.shown()[1] == "DependenciesNotReady", "shown")
    status, _, message = driver.shown()
    assert status == "Ready=False"
    assert "may be frozen" in message
    assert "nobody knows" in message
    assert "does not answer" in message or "did not answer" in message
    guest.silent.clear()
    await eventually(lambda: driver.shown()[1] == "Running", "thawed, and shown")
    reasons = [reason for reason, _ in await told(subscription)]
    assert ("SuspendFailed" in reasons) == (how == "suspend")
    assert reasons.count("HeldStill") == 1
    assert "GoesOn" in reasons
    await driver.close()


async def test_a_workload_that_is_frozen_for_sure_is_shown_and_thawed_later() -> None:
    driver, domain = await started()
    guest = Guest(driver, "thaw")
    driver.world.fail = lambda call: call.startswith("capture ")
    await keep(driver, "suspend")
    assert domain in driver.world.frozen
    await eventually(lambda: "is frozen" in driver.shown()[2], "shown")
    assert driver.shown()[0] == "Ready=False"
    driver.world.fail = lambda _call: False
    again = await keep(driver, "snapshot")
    assert "StandsStill" in again.reason or "NotRunning" in again.reason
    guest.silent.clear()
    await eventually(lambda: domain not in driver.world.frozen, "thawed")
    await eventually(lambda: driver.shown()[1] == "Running", "shown")
    found = Operations(driver.manager)
    await found.suspend(found.find("s1"))
    assert driver.phase() is Phase.SUSPENDED
    await driver.close()


async def test_the_thaw_is_tried_more_and_more_rarely() -> None:
    driver, _ = await started()
    guest = Guest(driver, "freeze", "thaw")
    await keep(driver, "suspend")
    guest.waited_s = 0
    await asyncio.sleep(1)
    assert 0 < guest.waited_s <= 6 * 2, "0.05, 0.1, 0.2, 0.4, ... s between them"
    await driver.close()


async def test_a_machine_that_is_not_let_go_on_is_not_thawed_in_vain() -> None:
    """The guest would not hear it, and nobody would say it again."""
    driver, domain = await started()
    stuck = [True]

    def fail(call: str) -> bool:
        if call.startswith("go on ") and stuck:
            raise HypervisorError("the monitor does not answer")
        return call.startswith("capture ")

    driver.world.fail = fail
    await keep(driver, "suspend")
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    assert driver.world.domains[domain] is DomainState.PAUSED
    stuck.clear()
    await eventually(lambda: driver.shown()[1] == "Running", "it goes on")
    assert domain not in driver.world.frozen
    assert driver.world.domains[domain] is DomainState.RUNNING
    await driver.close()


@pytest.mark.parametrize("end", ["stop", "stop suspended", "delete", "power off"])
async def test_it_can_be_ended_meanwhile(end: str) -> None:
    driver, domain = await started(
        on_stop="suspend" if end == "stop suspended" else "shutdown"
    )
    guest = Guest(driver, "freeze", "thaw")
    await keep(driver, "suspend")
    guest.waited_s = 0
    async with asyncio.timeout(4):
        if end == "delete":
            assert await driver.manager.delete("s1", "")
            assert driver.world.objects() == set()
        elif end == "power off":
            driver.world.end_machine(domain)
            driver.hypervisor.hint(domain)
            await eventually(lambda: driver.phase() is Phase.FAILED, "noticed")
        else:
            await driver.manager.stop("s1", "")
            assert driver.phase() is Phase.STOPPED
            await driver.manager.start("s1", "")
            await driver.settled()
            assert driver.shown()[1] == "Running"
    assert guest.waited_s <= SOON.stop_grace_s + 4
    await driver.close()


async def test_the_next_driver_sees_it_too() -> None:
    driver, _ = await started()
    Guest(driver, "freeze", "thaw")
    await keep(driver, "suspend")
    await driver.close()
    driver = FakeDriver(driver.world, settings=SOON)
    guest = Guest(driver, "freeze", "thaw")
    await driver.manager.recover()
    await eventually(lambda: driver.shown()[1] == "DependenciesNotReady", "shown")
    guest.silent.clear()
    await eventually(lambda: driver.shown()[1] == "Running", "thawed")
    await driver.close()
