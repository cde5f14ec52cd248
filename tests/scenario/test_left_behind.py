"""Layers and memory that a step left which was cut off, or whose disk was full: they go with the next
rest, and with the sandbox at the latest. Consoles are kept small whatever their sandbox is at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.gate import Gate
from tests.fakes.ledgers import held_objects
from tests.fakes.world import World
from tests.scenario.stage import eventually
from vmdriver.errors import DriverError
from vmdriver.host.threads import finished
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.memory.snapshot import find_snapshot
from vmdriver.model.phase import Phase


async def snapshots(
    *names: str, gate: Gate | None = None
) -> tuple[FakeDriver, Operations, Worker]:
    """s1 runs and has these, each with its memory."""
    driver = FakeDriver(World(), gate or Gate())
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    found = Operations(driver.manager)
    worker = found.find("s1")
    for name in names:
        await found.create_snapshot(worker, name, disk_only=False)
        await driver.settled()
    return driver, found, worker


async def returned_on_a_full_disk() -> tuple[
    FakeDriver, Operations, str, asyncio.Task[None]
]:
    """A return to a snapshot whose record is stored already, and then the ledger cannot grow. The layer
    that the sandbox stood on before.
    """
    driver, found, worker = await snapshots("a")
    await found.suspend(worker)
    await driver.settled()
    old = worker.sandbox.record.layers[-1]

    def full(call: str) -> bool:
        return call == "append to journal" and old not in worker.sandbox.record.layers

    driver.world.fail = full
    returning = asyncio.create_task(found.restore_snapshot(worker, "a"))
    await driver.troubled()
    assert old not in worker.sandbox.record.layers
    return driver, found, old, returning


async def test_a_delete_after_a_return_that_a_full_disk_cut_off_leaves_no_layer() -> (
    None
):
    driver, _, old, returning = await returned_on_a_full_disk()
    assert old in driver.world.files
    driver.world.fail = lambda _: False
    assert await driver.manager.delete("s1", "")
    assert driver.world.objects() == set()
    assert not driver.world.records
    await asyncio.gather(returning, return_exceptions=True)
    await driver.close()


async def test_what_such_a_return_leaves_goes_when_there_is_space() -> None:
    driver, found, old, returning = await returned_on_a_full_disk()
    driver.world.fail = lambda _: False
    await asyncio.gather(returning, return_exceptions=True)
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await eventually(lambda: old not in driver.world.files, "its layer stays")
    assert driver.world.objects() == held_objects(driver.world)
    assert list(driver.world.checkpoints) == ["s1/snapshots/a"]
    await found.restore_snapshot(found.find("s1"), "a")
    await driver.close()


async def two_branches(gate: Gate) -> tuple[FakeDriver, Operations, str]:
    """Snapshot b stands on a layer that nothing else needs."""
    driver, found, worker = await snapshots("a", "b", gate=gate)
    await found.restore_snapshot(worker, "a")
    await driver.settled()
    (layer,) = set(find_snapshot(worker.sandbox.record, "b").layers) - set(
        worker.sandbox.record.layers
    )
    return driver, found, layer


async def test_a_stop_that_cuts_off_the_removal_of_a_snapshot_leaves_no_file() -> None:
    driver, found, layer = await two_branches(Gate())
    remove, begun, go_on = driver.memory_store.remove, asyncio.Event(), asyncio.Event()

    async def slowly(directory: str) -> None:
        begun.set()
        await go_on.wait()
        await remove(directory)

    # As the real one, whose thread is waited for also when the wait is cancelled.
    driver.memory_store.remove = lambda d: finished(slowly(d))  # type: ignore[method-assign]
    removing = asyncio.create_task(found.delete_snapshot(found.find("s1"), "b"))
    await begun.wait()
    stopping = asyncio.create_task(driver.manager.stop("s1", ""))
    await eventually(driver.inside.was_cut_off, "it is not cut off")
    go_on.set()
    await stopping
    (answer,) = await asyncio.gather(removing, return_exceptions=True)
    assert "this was cut off" in str(answer)
    await driver.settled()
    assert [e.name for e in found.find("s1").sandbox.record.snapshots] == ["a"]
    await eventually(lambda: layer not in driver.world.files, "its layer stays")
    assert list(driver.world.checkpoints) == ["s1/snapshots/a"]
    assert driver.world.objects() == held_objects(driver.world)
    await driver.close()


@pytest.mark.parametrize("what", ["remove layers/", "remove checkpoint s1/snapshots/b"])
async def test_a_file_that_cannot_be_removed_at_first_is_removed_later(
    what: str,
) -> None:
    driver, found, layer = await two_branches(Gate())
    failures = iter([True, True, True])
    driver.world.fail = lambda call: call.startswith(what) and next(failures, False)
    removing = found.delete_snapshot(found.find("s1"), "b")
    await asyncio.gather(removing, return_exceptions=True)
    await eventually(lambda: layer not in driver.world.files, "its layer stays")
    await eventually(lambda: len(driver.world.checkpoints) == 1, "its memory stays")
    assert next(failures, None) is None, "it must have failed"
    assert driver.phase() is Phase.RUNNING
    assert driver.world.objects() == held_objects(driver.world)
    await driver.close()


async def test_a_layer_that_the_machine_has_open_stays_whatever_the_record_says() -> (
    None
):
    driver, _, worker = await snapshots("a")
    plan = worker.sandbox.record.plan
    assert plan is not None
    stray = "layers/s1.99.qcow2"
    driver.world.files.add(stray)
    driver.world.root_layers[plan.domain] = stray
    # What cannot be noted may have left files.
    driver.world.fail = lambda call: call == "save record"
    with pytest.raises(DriverError):
        await driver.inside.update("s1", note="there is no room for this")
    driver.world.fail = lambda _: False
    driver.hint()
    await driver.settled()
    assert stray in driver.world.files
    await driver.manager.stop("s1", "")
    await eventually(lambda: stray not in driver.world.files, "nobody uses it now")
    await driver.close()


async def test_a_snapshot_that_was_made_and_cannot_be_noted_leaves_nothing() -> None:
    driver, found, worker = await snapshots()

    def full(call: str) -> bool:
        return (
            call == "save record"
            and "s1/snapshots/a" in driver.world.checkpoints
            and "s1/capture.part" not in driver.world.checkpoints
        )

    driver.world.fail = full
    making = found.create_snapshot(worker, "a", disk_only=False)
    (answer,) = await asyncio.gather(making, return_exceptions=True)
    assert "on purpose" in str(answer)
    driver.world.fail = lambda _: False
    driver.hint()
    await eventually(lambda: not driver.world.checkpoints, "its memory stays")
    assert worker.sandbox.record.snapshots == ()
    await driver.close()


Ask = Callable[[FakeDriver, Worker], Awaitable[object]]


async def crash(driver: FakeDriver, worker: Worker) -> None:
    plan = worker.sandbox.record.plan
    assert plan is not None
    driver.world.end_machine(plan.domain)
    driver.hypervisor.hint(plan.domain)


@pytest.mark.parametrize(
    ("ask", "at", "phase"),
    [
        (lambda d, _: d.manager.stop("s1", ""), "machine:before-release", "stopping"),
        (
            lambda d, w: Operations(d.manager).suspend(w),
            "capture:frozen:after-effect",
            "suspending",
        ),
        (crash, "machine:before-release", "failing"),
        (lambda d, _: d.manager.delete("s1", ""), "machine:before-release", "deleting"),
    ],
)
async def test_a_console_stays_small_while_there_may_be_a_machine(
    ask: Ask, at: str, phase: str
) -> None:
    driver, _, worker = await snapshots(gate=(gate := Gate()))
    gate.shut(at)
    asking = asyncio.create_task(asyncio.wait_for(ask(driver, worker), 5))
    await gate.reached()
    assert worker.sandbox.record.phase.value == phase
    driver.world.calls.clear()
    await driver.inside.cut_consoles()
    assert "bound console s1/console.log" in driver.world.calls
    gate.open()
    await asking
    await driver.close()


async def test_a_console_stays_small_while_its_machine_is_resumed_and_is_cut_once_more_at_its_end() -> (
    None
):
    driver, found, worker = await snapshots(gate=(gate := Gate()))
    bound = driver.inside.cut_consoles
    await found.suspend(worker)
    await driver.settled()
    await bound()
    driver.world.calls.clear()
    await bound()
    assert not [c for c in driver.world.calls if c.startswith("bound")]
    gate.shut("machine:after-effect")
    resuming = asyncio.create_task(found.resume(worker, cold=False))
    await gate.reached()
    assert worker.sandbox.record.phase is Phase.RESUMING
    await bound()
    assert "bound console s1/console.log" in driver.world.calls
    gate.open()
    await resuming
    await driver.manager.stop("s1", "")
    driver.world.calls.clear()
    await bound()
    assert "bound console s1/console.log" in driver.world.calls, "what it said last"
    await driver.close()
