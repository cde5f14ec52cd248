"""A machine whose network is not what was made for it does not run, and can always be ended."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.limits import limit
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import (
    BOUND_S,
    eventually,
    running,
    waiting,
    with_template,
)
from vmdriver.lifecycle.engine.broadcast import Happened, Subscription
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import DomainState, Phase


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, stalled_look_s=0.05, settle_s=0.01)


async def told(subscription: Subscription) -> list[str]:
    subscription.close()
    reasons = []
    while (notice := await subscription.next()) is not None:
        reasons += [notice.event.reason] if isinstance(notice, Happened) else []
    return reasons


async def broken(driver: FakeDriver) -> str:
    """The network of s1 cannot be restored, and it is held still; its domain."""
    await driver.network_guard.flushed(beyond_repair=True)
    domain = driver.plan().domain
    await eventually(
        lambda: driver.world.domains[domain] is DomainState.PAUSED, "it runs on"
    )
    await eventually(lambda: driver.shown()[0] == "Ready=False", "not shown")
    return domain


async def whole_again(driver: FakeDriver) -> None:
    driver.world.beyond_repair.clear()
    await driver.network_guard.look(driver.plan().network.lease.tap)


async def test_what_was_restored_is_told_and_the_machine_runs_on() -> None:
    driver = await running()
    subscription = driver.broadcaster.subscribe()
    await driver.network_guard.flushed()
    tap = driver.plan().network.lease.tap
    assert tap in driver.world.tables
    assert driver.shown()[0] == "Ready=True"
    assert await told(subscription) == ["NetworkRestored"]
    assert not any(call.startswith("pause") for call in driver.world.calls)
    await driver.close()


async def test_a_machine_is_paused_and_shown_so_and_goes_on_when_all_is_whole() -> None:
    driver = await running()
    subscription = driver.broadcaster.subscribe()
    domain = await broken(driver)
    assert driver.shown()[1] == "DependenciesNotReady"
    assert "cannot be loaded" in driver.shown()[2]
    await whole_again(driver)
    await eventually(lambda: driver.shown()[0] == "Ready=True", "not shown")
    assert driver.world.domains[domain] is DomainState.RUNNING
    assert not driver.record().network_broken
    assert await told(subscription) == ["NetworkBroken", "NetworkRestored", "GoesOn"]
    await driver.close()


async def test_the_record_says_so_before_the_machine_is_paused() -> None:
    """Else a driver that is killed in between leaves a machine that nobody lets go on."""
    driver = await running()
    broken_when_paused: list[str] = []
    pause = driver.memory.pause

    async def paused(domain: str) -> None:
        broken_when_paused.append(driver.record().network_broken)
        await pause(domain)

    driver.memory.pause = paused
    await broken(driver)
    assert broken_when_paused[0]
    await driver.close()


@pytest.mark.parametrize("end", ["stop", "delete", "suspending stop"])
async def test_a_machine_that_is_held_still_can_be_ended_and_started_again(
    end: str,
) -> None:
    on_stop = "suspend" if end == "suspending stop" else "shutdown"
    driver = FakeDriver(
        World(), settings=dataclasses.replace(SETTINGS, on_stop=on_stop)
    )
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    await broken(driver)
    async with asyncio.timeout(BOUND_S):
        if end == "delete":
            assert await driver.manager.delete("s1", "")
            assert driver.world.objects() == set()
            await driver.close()
            return
        await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.STOPPED
    assert not driver.world.domains
    driver.world.beyond_repair.clear()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.shown()[:2] == ("Ready=True", "Running")
    assert not driver.record().network_broken
    await driver.close()


@pytest.mark.parametrize("when", ["whole meanwhile", "broken still"])
async def test_the_next_driver_finds_it_held_still_for_that_reason(when: str) -> None:
    driver = await running()
    domain = await broken(driver)
    await driver.kill()
    if when == "whole meanwhile":
        driver.world.beyond_repair.clear()
    following = FakeDriver(driver.world)
    await following.manager.recover()
    if when == "broken still":
        # From its first moment on, without having asked anybody.
        assert following.shown()[1] == "DependenciesNotReady"
        await asyncio.sleep(0.2)
        assert following.shown()[1] == "DependenciesNotReady"
        assert following.world.domains[domain] is DomainState.PAUSED
        await whole_again(following)
    await eventually(lambda: following.shown()[0] == "Ready=True", "it stays so")
    assert following.world.domains[domain] is DomainState.RUNNING
    await following.close()


async def test_a_driver_that_cannot_load_the_rules_of_what_it_adopts_pauses_it() -> (
    None
):
    driver = await running()
    domain = driver.plan().domain
    await driver.kill()
    driver.world.tables.clear()
    driver.world.beyond_repair = {driver.plan().network.lease.tap}
    following = FakeDriver(driver.world)
    await following.manager.recover()
    await eventually(
        lambda: following.world.domains[domain] is DomainState.PAUSED, "it runs on"
    )
    await whole_again(following)
    await eventually(
        lambda: following.world.domains[domain] is DomainState.RUNNING, "it stays so"
    )
    await following.close()


async def test_a_guest_that_boots_is_held_still_too_and_its_time_does_not_run_out() -> (
    None
):
    settings = dataclasses.replace(SETTINGS, boot_timeout_s=0.3)
    driver = FakeDriver(World(), settings=settings)
    world, start = driver.world, driver.hypervisor.start

    async def slow(plan, mark) -> None:
        await start(plan, mark)
        world.reports[plan.disk("status").path] = GuestReport()

    driver.hypervisor.start = slow
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await eventually(lambda: bool(world.domains), "not begun")
    await eventually(lambda: driver.record().phase is Phase.LAUNCHING, "not begun")
    domain = await broken(driver)
    await asyncio.sleep(0.6)
    assert driver.phase() is Phase.LAUNCHING
    assert world.domains[domain] is DomainState.PAUSED
    await whole_again(driver)
    await eventually(
        lambda: world.domains[domain] is DomainState.RUNNING, "it stays so"
    )
    world.reports[driver.plan().disk("status").path] = GuestReport("started")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await driver.close()


async def test_what_an_operator_had_paused_is_not_let_go_on_with_the_network() -> None:
    driver = await running()
    domain = driver.plan().domain
    driver.world.domains[domain] = DomainState.PAUSED
    driver.hypervisor.hint(domain)
    await eventually(lambda: driver.shown()[0] == "Ready=False", "shown")
    await driver.network_guard.flushed(beyond_repair=True)
    await eventually(lambda: driver.record().network_broken, "not noted")
    await whole_again(driver)
    await eventually(lambda: not driver.record().network_broken, "still noted")
    assert driver.world.domains[domain] is DomainState.PAUSED
    driver.world.domains[domain] = DomainState.RUNNING
    driver.hypervisor.hint(domain)
    await eventually(lambda: driver.shown()[0] == "Ready=True", "goes on")
    await driver.close()


async def test_a_full_disk_keeps_no_machine_running() -> None:
    driver = await running()
    driver.world.fail = lambda call: call in {"save record", "append to journal"}
    domain = await broken(driver)
    async with asyncio.timeout(BOUND_S):
        driver.world.fail = lambda _call: False
        await driver.manager.delete("s1", "")
    assert domain not in driver.world.domains
    await driver.close()


async def test_a_fork_that_is_claimed_is_kept_under_its_new_owners_name() -> None:
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    (fork,) = driver.inside.waiting()
    tap = fork.plan.network.lease.tap
    assert driver.network_guard.keeps(tap)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.plan("second").network.lease.tap == tap
    await driver.network_guard.flushed()
    assert driver.world.tables[tap] == driver.world.taps[tap]
    assert driver.world.tables[tap].endswith("/second")
    await driver.close()


async def test_a_network_that_breaks_while_nobody_owns_the_machine_ends_the_claim() -> (
    None
):
    """It is given back, and the sandbox boots, or fails and says why."""
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    (fork,) = driver.inside.waiting()
    tap = fork.plan.network.lease.tap
    driver.world.beyond_repair = {tap}
    await driver.manager.create(spec("second"), None)
    await eventually(lambda: driver.phase("second") is Phase.FAILED, "it came up")
    assert "cannot be loaded" in driver.failure("second").message
    assert fork.plan.domain not in driver.world.domains
    driver.world.beyond_repair.clear()
    await driver.close()


@pytest.mark.parametrize("where", ["taps", "namespaces"])
@pytest.mark.parametrize("others", ["nothing", "vmdriver/another/s9"])
async def test_a_delete_ends_whatever_its_network_is_marked_with_by_now(
    where: str, others: str
) -> None:
    """What was ours under that name goes; what another sandbox is marked with stays."""
    driver = await running()
    tap, marks = driver.plan().network.lease.tap, getattr(driver.world, where)
    assert tap in marks
    marks[tap] = others
    async with asyncio.timeout(5):
        assert await driver.manager.delete("s1", "")
    assert marks == ({tap: others} if "another" in others else {})
    assert not driver.world.records
    await driver.close()
