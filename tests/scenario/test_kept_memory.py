"""Kept memory stays usable: nothing that it needs is merged, collected or removed too early."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from pathlib import Path

import pytest

from tests.fakes.driver import FakeDriver
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import operations, running, ticked
from vmdriver.errors import DriverError, HostError, Refused
from vmdriver.lifecycle.memory.snapshot import find_snapshot
from vmdriver.model.checkpoint import MemoryManifest
from vmdriver.model.phase import Phase
from vmdriver.model.wishes import Wish


async def test_what_manifests_name_is_not_collected() -> None:
    world = World()
    driver = await running(world)
    found, worker = operations(driver)
    for name in ("a", "b"):
        await found.create_snapshot(worker, name, disk_only=False)
    (first, second) = (
        entry.memory.directory for entry in worker.sandbox.record.snapshots
    )
    for directory, name in ((first, "old"), (second, "older")):
        # Made when another supervisor and base were current, by a later release.
        manifest = MemoryManifest.model_validate_json(world.checkpoints[directory])
        files = tuple(
            identity.model_copy(update={"path": f"/{name}/{Path(identity.path).name}"})
            for identity in manifest.files
        )
        text = manifest.model_copy(update={"files": files}).model_dump_json()
        world.checkpoints[directory] = text.replace("{", '{"unheard_of": 1, ', 1)
    await driver.manager.images.collect()
    for name in ("old", "older"):
        assert f"/{name}/supervisor.img" in world.supervisors_in_use
        assert f"/{name}/base.ext4" in world.images_in_use
    world.checkpoints[second] = "torn"
    await found.suspend(worker)
    await driver.manager.images.collect()
    assert "/supervisor.img" in world.supervisors_in_use
    assert "/old/supervisor.img" in world.supervisors_in_use
    assert "/older/supervisor.img" not in world.supervisors_in_use
    await driver.close()


async def test_nothing_is_collected_while_a_manifest_cannot_be_read() -> None:
    world = World()
    driver = await running(world)
    await driver.manager.images.collect()
    world.supervisors_in_use = world.images_in_use = {"untouched"}

    async def unreadable(directory: str) -> set[str]:
        raise HostError("Input/output error")

    driver.memory_store.needs = unreadable  # type: ignore[method-assign]
    with pytest.raises(HostError):
        await driver.manager.images.collect()
    assert world.supervisors_in_use == world.images_in_use == {"untouched"}
    await driver.close()


async def test_layers_under_kept_memory_are_not_merged() -> None:
    """It could not be restored now, is stopped meanwhile, and restored later."""
    settings = dataclasses.replace(SETTINGS, on_restore_failure="fail")
    driver = await running(settings=settings)
    found, worker = operations(driver)
    world = driver.world
    for name in ("a", "b"):
        await found.create_snapshot(worker, name, disk_only=True)
        await found.delete_snapshot(worker, name)
    domain = await ticked(driver)
    layers = worker.sandbox.record.layers
    assert len(layers) == 3
    await found.suspend(worker)
    world.damaged.add("s1/suspended")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.FAILED
    await driver.manager.stop("s1", "")
    await driver.settled()  # layers are merged after the stop's answer
    assert driver.phase() is Phase.SUSPENDED
    assert worker.sandbox.record.layers == layers
    world.damaged.clear()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.memory.tick(domain) == 2, "it went on where it was"
    await worker_stopped(driver)
    assert len(worker.sandbox.record.layers) == 1, "nothing needs them any more"
    await driver.close()


async def worker_stopped(driver: FakeDriver) -> None:
    await driver.wish("s1", Wish.STOP)
    await driver.settled()
    assert driver.phase() is Phase.STOPPED


@pytest.mark.parametrize("call", ["create overlay", "save record"])
async def test_a_return_that_fails_leaves_the_memory_of_before(call: str) -> None:
    driver = await running()
    found, worker = operations(driver)
    world = driver.world
    await found.create_snapshot(worker, "a", disk_only=True)
    await ticked(driver)
    await found.suspend(worker)
    old, layers = world.checkpoints["s1/suspended"], worker.sandbox.record.layers
    armed = []

    def fails(made: str) -> bool:
        # The record's wish is saved, and nothing after it.
        if made == "save record" and not armed:
            armed.append(made)
            return False
        return made.startswith(call)

    world.fail = fails
    returning = asyncio.create_task(found.restore_snapshot(worker, "a"))
    await driver.troubled()
    assert world.checkpoints["s1/suspended"] == old
    assert set(layers) <= world.files
    world.fail = lambda _call: False
    await returning
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert "s1/suspended" not in world.checkpoints
    assert not set(layers) & world.files - set(
        worker.sandbox.record.snapshots[0].layers
    )
    await driver.close()


async def test_a_snapshot_whose_removal_cannot_be_stored_is_whole() -> None:
    driver = await running()
    found, worker = operations(driver)
    world = driver.world
    await found.create_snapshot(worker, "a", disk_only=False)
    (entry,) = worker.sandbox.record.snapshots
    await found.create_snapshot(worker, "b", disk_only=False)
    await found.restore_snapshot(worker, "a")
    snapshot = find_snapshot(worker.sandbox.record, "b")
    assert set(snapshot.layers) - set(worker.sandbox.record.layers), (
        "it alone needs a layer"
    )
    world.fail = lambda call: call == "save record"
    with pytest.raises(DriverError):
        await found.delete_snapshot(worker, "b")
    world.fail = lambda _call: False
    assert worker.sandbox.record.snapshots == (entry, snapshot)
    assert snapshot.memory.directory in world.checkpoints
    assert set(snapshot.layers) <= world.files
    await found.delete_snapshot(worker, "b")
    assert snapshot.memory.directory not in world.checkpoints
    assert not (set(snapshot.layers) - set(worker.sandbox.record.layers)) & world.files
    await driver.close()


async def test_a_disk_of_a_stopped_sandbox_is_read_only_only_when_another_is_written_to() -> (
    None
):
    driver = await running()
    found, worker = operations(driver)
    world = driver.world
    await worker_stopped(driver)
    (layer,) = worker.sandbox.record.layers
    world.fail = lambda call: call == "save record"
    with pytest.raises(DriverError):
        await found.create_snapshot(worker, "a", disk_only=True)
    world.fail = lambda _call: False
    assert worker.sandbox.record.layers == (layer,)
    assert f"freeze layer {layer}" not in world.calls, "QEMU could not write to it"
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await driver.close()


async def test_a_return_that_cannot_be_does_not_stand_in_a_stops_way() -> None:
    driver = await running()
    found, worker = operations(driver)
    world = driver.world
    await found.create_snapshot(worker, "a", disk_only=True)
    domain, layers = await ticked(driver), worker.sandbox.record.layers
    await found.suspend(worker)
    world.fail = lambda call: call.startswith("create overlay")
    returning = asyncio.create_task(found.restore_snapshot(worker, "a"))
    await driver.troubled()
    async with asyncio.timeout(5):
        await driver.manager.stop("s1", "")
    with pytest.raises(Refused, match="stopped meanwhile"):
        await returning
    assert driver.phase() is Phase.SUSPENDED
    assert worker.sandbox.record.layers == layers
    world.fail = lambda _call: False
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.memory.tick(domain) == 2, "it is what it was"
    await driver.close()


async def test_a_return_that_an_earlier_release_had_begun_leaves_no_layer_in_between() -> (
    None
):
    """Its new layer stands on the snapshot's, not on the sandbox's, and its ledger did not say so."""
    driver = await running()
    found, worker = operations(driver)
    world = driver.world
    await found.create_snapshot(worker, "a", disk_only=True)
    await ticked(driver)
    layers, made = worker.sandbox.record.layers, list[str]()

    def fails(call: str) -> bool:
        if call.startswith("create overlay"):
            made.append(call.split()[-1])
        return bool(made) and call == "save record"

    world.fail = fails
    returning = asyncio.create_task(found.restore_snapshot(worker, "a"))
    await driver.troubled()
    await driver.kill()
    returning.cancel()
    await asyncio.gather(returning, return_exceptions=True)
    assert '"running": false' in world.journals["s1"][-2]
    world.journals["s1"] = [
        line.replace(', "running": false', "") for line in world.journals["s1"]
    ]
    world.fail = lambda call: call.startswith("create overlay")
    again = FakeDriver(world)
    await again.manager.recover()
    async with asyncio.timeout(5):
        await again.manager.stop("s1", "")
    assert again.record().layers == layers
    assert made[0] not in world.files
    await again.close()


@pytest.mark.parametrize("killed", [True, False])
async def test_a_checkpoint_whose_name_could_not_be_made_durable_is_none(
    killed: bool,
) -> None:
    """The machine goes on; a driver that is killed before it can note that must not take the
    checkpoint for the suspension, which is older than the machine by now.
    """
    driver = await running()
    found, worker = operations(driver)
    world, domain = driver.world, await ticked(driver)
    failed: list[str] = []

    def fails(call: str) -> bool:
        if call.startswith("sync name of"):
            failed.append(call)
            return True
        return killed and bool(failed) and call == "save record"

    world.fail = fails
    suspending = asyncio.create_task(found.suspend(worker))
    async with asyncio.timeout(5):
        while not failed or domain in world.frozen:
            await asyncio.sleep(0.001)
    assert driver.memory.tick(domain) == 2
    if killed:
        await driver.kill()
    with pytest.raises((DriverError, asyncio.CancelledError)):
        suspending.cancel() if killed else None
        await suspending
    world.fail = lambda _call: False
    if killed:
        driver = FakeDriver(world)
        await driver.manager.recover()
    await driver.settled()
    if driver.phase() is Phase.SUSPENDED:  # again, from what the machine is now
        await driver.manager.start("s1", "")
        await driver.settled()
    assert driver.memory.tick(domain) == 3, "nothing of what it did is lost"
    assert world.starts[domain] == 1
    await driver.close()


async def test_a_checkpoint_of_a_suspension_under_way_is_not_swept_away() -> None:
    """Killed when it has its name, before the record says so; the machine stands still meanwhile,
    and ends.
    """
    driver = await running()
    found, worker = operations(driver)
    world, domain = driver.world, await ticked(driver)

    def killed(call: str) -> bool:
        world.dead = world.dead or call.startswith("sync name of")
        return world.dead

    world.fail = killed
    suspending = asyncio.create_task(found.suspend(worker))
    async with asyncio.timeout(5):
        while not world.dead:
            await asyncio.sleep(0.001)
    await driver.kill()
    suspending.cancel()
    await asyncio.gather(suspending, return_exceptions=True)
    world.fail = lambda _call: False
    world.qemu_ends(domain)
    again = FakeDriver(world)
    await again.manager.recover()
    await again.settled()
    assert again.phase() is Phase.SUSPENDED
    await again.manager.start("s1", "")
    await again.settled()
    assert again.memory.tick(domain) == 2
    assert world.starts[domain] == 1
    await again.close()


async def test_a_used_checkpoint_is_no_checkpoint_before_the_record_forgets_it() -> (
    None
):
    """Killed in between, the next driver goes on with the machine; a later suspension finds
    nothing of the first.
    """
    driver = await running()
    world, domain = driver.world, await ticked(driver)
    await driver.manager.stop("s1", "")
    world.calls.clear()
    await driver.manager.start("s1", "")
    await driver.settled()
    retired = world.calls.index("retire s1/suspended")
    assert "save record" in world.calls[retired:], "only then it runs"
    assert "s1/suspended" not in world.checkpoints
    assert world.checkpoints["s1/mapped"] == ""
    assert driver.memory.tick(domain) == 2
    await driver.close()


def _not_begun(found: object) -> bool:
    created = inspect.CORO_CREATED
    return inspect.iscoroutine(found) and inspect.getcoroutinestate(found) == created


async def test_a_process_may_end_before_anything_of_a_resume_has_begun() -> None:
    """Its tasks are cancelled: a coroutine that one of them was given, and had not begun, would be awaited by nobody."""
    driver = await running(World())
    found, worker = operations(driver)
    await found.suspend(worker)
    resuming = asyncio.create_task(found.resume(worker))
    while not resuming.done():
        for task in asyncio.all_tasks():
            coroutine = task.get_coro()
            if inspect.iscoroutine(coroutine) and _not_begun(coroutine):
                given = [*coroutine.cr_frame.f_locals.values()]
                given += [
                    one for some in given if isinstance(some, tuple) for one in some
                ]
                assert not any(map(_not_begun, given)), coroutine.__qualname__
        await asyncio.sleep(0)
    await resuming
    assert worker.sandbox.record.phase is Phase.RUNNING
    await driver.close()
