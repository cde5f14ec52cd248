"""Where the time of a sandbox's last start went is kept with it, whatever it started from, and of its snapshots."""

from __future__ import annotations

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import operations, running, waiting, with_template
from vmdriver.model.phase import Phase
from vmdriver.model.timing import StartTiming
from vmdriver.model.wishes import Wish

_PARTS = ["overlay", "launch-files", "tap", "firewall", "machine"]


def timing(driver: FakeDriver, sandbox_id: str) -> StartTiming:
    found = driver.record(sandbox_id).last_start
    assert found is not None
    moments = [(step.begun_ms, step.ended_ms) for step in found.steps]
    assert all(0 <= begun <= ended for begun, ended in moments)
    begun = [moment[0] for moment in moments]
    assert begun == sorted(begun)
    return found


def names(found: StartTiming) -> list[str]:
    return [step.name for step in found.steps]


async def test_a_boot_is_timed_from_the_request_to_the_guests_word() -> None:
    driver = await running()
    found = timing(driver, "s1")
    assert found.kind == "booted"
    shown = names(found)
    assert shown[0] == "accepted"
    assert [name for name in shown if name in _PARTS] == _PARTS
    assert shown.index("image") < shown.index("address") < shown.index("plan stored")
    assert shown.index("guest starts") > shown.index("machine")
    assert any(name.startswith("guest: ") for name in shown), (
        "its own stamps are inside"
    )
    await driver.close()


async def test_a_fork_and_a_claim_are_timed_as_what_they_are() -> None:
    driver = await with_template()
    await driver.manager.create(spec("forked"), None)
    await driver.settled()
    found = timing(driver, "forked")
    assert found.kind == "template"
    inside = ["load", "go on", "guest takes its files"]
    assert [name for name in names(found) if name in inside] == inside
    machine = next(step for step in found.steps if step.name == "machine")
    loaded = next(step for step in found.steps if step.name == "load")
    assert machine.begun_ms <= loaded.begun_ms <= loaded.ended_ms <= machine.ended_ms
    await driver.close()


async def test_a_claimed_machine_was_loaded_before() -> None:
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    await driver.manager.create(spec("claimed"), None)
    await driver.settled()
    assert "load" not in names(timing(driver, "claimed"))
    await driver.close()


async def test_a_resume_replaces_the_timing_of_the_boot_and_a_relaunch_that_of_the_resume() -> (
    None
):
    driver = await running()
    await driver.manager.stop("s1", "")
    await driver.manager.start("s1", "")
    await driver.settled()
    found = timing(driver, "s1")
    assert found.kind == "resumed"
    assert {"check", "load", "hygiene"} <= set(names(found))
    assert driver.record("s1").last_restore["load"] >= 0
    await driver.close()


async def test_a_relaunch_is_timed_from_its_start() -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.STOPPED
    await driver.manager.start("s1", "")
    await driver.settled()
    found = timing(driver, "s1")
    assert found.kind == "relaunched"
    assert names(found).count("image") == 1, "steps of the first start are not in it"
    await driver.close()


async def test_a_machine_that_is_taken_up_keeps_the_timing_of_its_start() -> None:
    driver = await running()
    taken_up = FakeDriver(driver.world)
    await driver.close()
    await taken_up.manager.recover()
    await taken_up.settled()
    assert taken_up.record("s1").last_start == driver.record("s1").last_start
    await taken_up.close()


STANDING = ["sync", "freeze", "pause", "memory", "disk", "go on"]


@pytest.mark.parametrize("disk_only", [False, True])
async def test_the_steps_of_a_snapshot_are_kept_with_it(disk_only: bool) -> None:
    driver = await running()
    found, worker = operations(driver)
    await found.create_snapshot(worker, "a", disk_only=disk_only)
    (entry,) = driver.record("s1").snapshots
    told = [step.name for step in entry.steps]
    if disk_only:
        wanted = ["new layer", "sync", "freeze", "disk", "go on", "note"]
    else:
        before, after = ["room", "new layer"], ["note", "cut", "write out", "publish"]
        wanted = [*before, *STANDING, *after]
    assert told == wanted
    assert all(step.begun_ms <= step.ended_ms for step in entry.steps)
    await driver.wish("s1", Wish.STOP)
    await driver.settled()
    await found.create_snapshot(worker, "b", disk_only=True)
    assert driver.record("s1").snapshots[-1].steps == (), "nothing stood still"
    await driver.close()
