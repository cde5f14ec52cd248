"""What two callers do at once, each of which would be right alone."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.gate import Gate
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import eventually, with_template
from vmdriver.errors import Exhausted, NotFound, Refused, StorageError
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.model.phase import Intent, Phase


async def slow(_crash_point: str) -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def with_fork() -> FakeDriver:
    """s2 stands on a snapshot of s1."""
    driver = FakeDriver(World(), slow)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    found = Operations(driver.manager)
    await found.create_snapshot(found.find("s1"), "a", disk_only=True)
    fork = spec("s2", driver_config={"from_snapshot": "name-s1/a"})
    await driver.manager.create(fork, None)
    await driver.settled()
    return driver


@pytest.mark.parametrize("first", ["s1", "s2"])
@pytest.mark.parametrize("turns", range(0, 24, 3))
async def test_the_last_two_on_a_layer_that_go_at_once_do_not_leave_it_to_each_other(
    first: str, turns: int
) -> None:
    driver = await with_fork()
    going = asyncio.create_task(driver.manager.delete(first, ""))
    for _ in range(turns):
        await asyncio.sleep(0)
    await driver.manager.delete("s2" if first == "s1" else "s1", "")
    await going
    assert driver.world.objects() == set()
    await driver.close()


async def test_the_last_forks_of_a_removed_template_take_its_layer_with_them() -> None:
    driver = await with_template(slow)  # type: ignore[arg-type]
    manager = driver.manager
    for name in ("second", "third"):
        await manager.create(spec(name), None)
        await driver.settled()
    (template,) = manager.templates.listed()
    await manager.templates.remove(template.key)
    assert template.layer in driver.world.files
    names = ("first", "second", "third")
    await asyncio.gather(*(manager.delete(name, "") for name in names))
    await eventually(
        lambda: template.layer not in driver.world.files, "it is left over"
    )
    await driver.close()
    assert driver.world.objects() == set()


async def two_stopped(room_mib: int) -> FakeDriver:
    settings = dataclasses.replace(SETTINGS, max_committed_memory_mib=room_mib)
    driver = FakeDriver(World(), slow, settings=settings)
    await driver.manager.recover()
    for name in ("s1", "s2"):
        await driver.manager.create(spec(name), None)
        await driver.settled()
        found = Operations(driver.manager)
        await found.create_snapshot(found.find(name), "a", disk_only=True)
        await driver.manager.stop(name, "")
    return driver


async def test_two_starts_at_once_do_not_both_have_the_room_for_one() -> None:
    driver = await two_stopped(SETTINGS.memory_mib)
    starts = (driver.manager.start(name, "") for name in ("s1", "s2"))
    refused = [e for e in await asyncio.gather(*starts, return_exceptions=True) if e]
    assert [type(error) for error in refused] == [Exhausted]
    await driver.settled()
    records = driver.records()
    assert sum(record.intent is Intent.RUNNING for record in records) == 1
    (stopped,) = (r.id for r in records if r.intent is Intent.STOPPED)
    (runs,) = (r.id for r in records if r.intent is Intent.RUNNING)
    await driver.manager.stop(runs, "")
    await driver.manager.start(stopped, "")  # what was refused holds nothing
    await driver.settled()
    assert driver.phase(stopped) is Phase.RUNNING
    await driver.close()


async def test_what_is_stopped_returns_to_a_snapshot_only_where_there_is_room() -> None:
    driver = await two_stopped(SETTINGS.memory_mib)
    await driver.manager.start("s1", "")
    await driver.settled()
    found = Operations(driver.manager)
    with pytest.raises(Exhausted):
        await found.restore_snapshot(found.find("s2"), "a")
    assert driver.phase("s2") is Phase.STOPPED
    await found.restore_snapshot(found.find("s1"), "a")  # its own room it has
    assert driver.phase("s1") is Phase.RUNNING
    await driver.close()


async def test_what_was_stopped_before_it_had_a_disk_has_nothing_for_a_snapshot() -> (
    None
):
    driver = FakeDriver(World(), gate := Gate())
    await driver.manager.recover()
    gate.shut("overlay:before-intent")
    await driver.manager.create(spec(), None)
    await gate.reached()
    await driver.manager.stop("s1", "")
    found = Operations(driver.manager)
    worker = found.find("s1")
    assert worker.sandbox.record.layers, "noted, and not made"
    with pytest.raises(Refused, match="no disk yet"):
        await found.create_snapshot(worker, "a", disk_only=True)
    gate.open()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await driver.close()


async def test_nothing_writes_the_record_of_what_is_going_for_good() -> None:
    driver = FakeDriver(World(), gate := Gate())
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    found = Operations(driver.manager)
    gate.shut("record:before-remove")
    going = asyncio.create_task(driver.manager.delete("s1", ""))
    await gate.reached()
    resuming = asyncio.create_task(found.resume(found.find("s1"), cold=True))
    writing = asyncio.create_task(driver.inside.update("s1", note="still here"))
    for _ in range(100):
        await asyncio.sleep(0)
    assert driver.world.records.keys() == {"s1"}
    gate.open()
    assert await going is True
    with pytest.raises(Refused, match="being deleted"):
        await resuming
    with pytest.raises(NotFound):
        await writing
    assert driver.world.records == {}
    await driver.close()


async def test_whoever_waits_for_what_was_deleted_meanwhile_is_told_that_it_is_gone() -> (
    None
):
    driver = FakeDriver(World(), gate := Gate())
    await driver.manager.recover()
    gate.shut("machine:before-intent")
    await driver.manager.create(spec(), None)
    await gate.reached()
    found = Operations(driver.manager)
    worker = found.find("s1")
    waiting = asyncio.create_task(found.create_snapshot(worker, "a", disk_only=True))
    await asyncio.sleep(0)
    deleting = asyncio.create_task(driver.manager.delete("s1", ""))
    await asyncio.sleep(0)
    deleting.cancel()  # its wish is stored, and that is all
    await asyncio.gather(deleting, return_exceptions=True)
    assert driver.record().intent is Intent.DELETED
    gate.open()
    with pytest.raises(NotFound, match="was deleted"):
        await waiting
    assert driver.world.objects() == set()
    await driver.close()


async def test_a_layer_that_could_not_be_removed_when_it_was_merged_goes_with_the_sandbox() -> (
    None
):
    driver = FakeDriver(World())
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    found = Operations(driver.manager)
    worker = found.find("s1")
    await found.create_snapshot(worker, "a", disk_only=True)
    await found.delete_snapshot(worker, "a")
    (_, top) = worker.sandbox.record.layers
    driver.world.fail = lambda call: call == f"remove {top}"
    await driver.manager.stop("s1", "")
    await eventually(
        lambda: len(worker.sandbox.record.layers) == 1, "they were not merged"
    )
    driver.world.fail = lambda _: False
    assert top in driver.world.files
    await driver.manager.delete("s1", "")
    assert driver.world.objects() == set()
    await driver.close()


async def test_a_fork_that_cannot_be_stored_keeps_nothing_of_a_source_that_has_gone() -> (
    None
):
    driver = await with_fork()
    await driver.manager.delete("s2", "")
    create, begun = driver.inside.ports.records.create, asyncio.Event()

    async def full(*_: object) -> None:
        begun.set()
        while driver.knows():
            await asyncio.sleep(0)
        raise StorageError("no space is left")

    driver.inside.ports.records.create = full  # type: ignore[method-assign]
    fork = spec("s3", driver_config={"from_snapshot": "name-s1/a"})
    making = asyncio.create_task(driver.manager.create(fork, None))
    await begun.wait()
    await driver.manager.delete("s1", "")
    with pytest.raises(StorageError):
        await making
    assert driver.world.objects() == set()
    driver.inside.ports.records.create = create  # type: ignore[method-assign]
    await driver.close()
