"""The root disk's layers where QEMU, libvirt and the record do not agree."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.fakes.driver import FakeDriver
from tests.fakes.ledgers import held_objects
from tests.fakes.world import World
from tests.scenario.stage import operations, running
from vmdriver.errors import HostError, TimedOut
from vmdriver.lifecycle.ports.memory import MachineMemory
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.wishes import Wish


async def check_chain(driver: FakeDriver) -> None:
    """Whatever was written is still there after everything that is done with layers."""
    found, worker = operations(driver)
    world, domain = driver.world, worker.sandbox.record.plan.domain
    driver.memory.tick(domain)
    await found.create_snapshot(worker, "next", disk_only=False)
    (entry,) = (e for e in worker.sandbox.record.snapshots if e.name == "next")
    assert set(entry.layers) <= world.frozen_layers, "others may stand on all of them"
    driver.memory.tick(domain)
    await found.suspend(worker)
    await found.resume(worker)
    driver.memory.tick(domain)
    await found.suspend(worker)
    await found.resume(worker, cold=True)
    assert driver.phase() is Phase.RUNNING
    assert set(worker.sandbox.record.layers) <= world.files
    assert world.root_layers[domain] == worker.sandbox.record.layers[-1]
    assert (
        max(world.written.get(layer, 0) for layer in worker.sandbox.record.layers) == 3
    )
    assert world.objects() == held_objects(world)


async def test_a_switch_that_may_come_late_is_taken_for_done() -> None:
    driver = await running()
    found, worker = operations(driver)
    switch = driver.memory.switch_layer
    late: list[tuple[str, str]] = []

    async def hang(domain: str, layer: str) -> None:
        late.append((domain, layer))
        raise TimedOut("QEMU does not answer")

    driver.memory.switch_layer = hang  # type: ignore[method-assign]
    with pytest.raises(TimedOut):
        await found.create_snapshot(worker, "a", disk_only=True)
    await driver.settled()
    ((domain, layer),) = late
    assert layer in driver.world.files, "QEMU may open it any moment"
    driver.world.root_layers[domain] = layer
    driver.memory.switch_layer = switch  # type: ignore[method-assign]
    await check_chain(driver)
    await driver.close()


@pytest.mark.parametrize("in_doubt", [True, False])
async def test_a_layer_of_a_switch_that_failed_is_kept_only_in_doubt(
    in_doubt: bool,
) -> None:
    driver = await running()
    found, worker = operations(driver)

    class Unsure:
        async def holds(self, layer: str, below: str) -> bool:
            assert below == worker.sandbox.record.layers[-1]
            return True

    memory: MachineMemory = driver.memory
    if in_doubt:
        memory.holds = Unsure().holds  # type: ignore[method-assign]
    driver.world.fail = lambda call: call.startswith("switch")
    with pytest.raises(HostError):
        await found.create_snapshot(worker, "a", disk_only=True)
    driver.world.fail = lambda _call: False
    await driver.settled()
    assert len(worker.sandbox.record.layers) == 1 + in_doubt
    await check_chain(driver)
    await driver.close()


async def test_a_layer_that_was_not_finished_is_never_stood_on() -> None:
    world = World()
    driver = await running(world)
    found, worker = operations(driver)
    world.fail = lambda call: call.startswith("create overlay")
    with pytest.raises(HostError):
        await found.create_snapshot(worker, "a", disk_only=True)
    world.fail = lambda _call: False
    await driver.settled()
    assert len(worker.sandbox.record.layers) == 1
    await check_chain(driver)
    await driver.close()


async def test_a_layer_that_a_killed_driver_has_not_finished_is_never_stood_on() -> (
    None
):
    """Also where the machine has ended since, so that nobody says what it wrote to."""
    driver = await running()
    found, worker = operations(driver)
    world, domain = driver.world, worker.sandbox.record.plan.domain
    (old,) = worker.sandbox.record.layers

    def killed(call: str) -> bool:
        world.dead = world.dead or call.startswith("complete overlay")
        return world.dead

    world.fail = killed
    taking = asyncio.create_task(found.create_snapshot(worker, "a", disk_only=True))
    async with asyncio.timeout(5):
        while not world.dead:
            await asyncio.sleep(0.001)
    await driver.kill()
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    world.fail = lambda _call: False
    (half,) = world.files & {f for f in world.files if "layers/" in f} - {old}
    world.qemu_ends(domain)
    again = FakeDriver(world)
    await again.manager.recover()
    await again.settled()
    assert again.record().layers == (old,)
    assert half not in world.files
    await again.close()


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("lost", ["", "capture:layer", "overlay"])
async def test_what_was_written_before_a_full_disk_let_the_record_be_saved_is_kept(
    lost: str, ends: bool
) -> None:
    """The machine goes on meanwhile, writes to the new layer, and ends or not. `lost`: of what the
    full disk has torn the line that it was made.
    """
    driver = await running()
    found, worker = operations(driver)
    world, domain = driver.world, worker.sandbox.record.plan.domain
    (old,) = worker.sandbox.record.layers
    switched: list[str] = []

    def fails(call: str) -> bool:
        if call.startswith("switch"):
            switched.append(call)
        return bool(switched) and call == "save record"

    world.fail = fails
    with pytest.raises(HostError):
        await found.create_snapshot(worker, "a", disk_only=True)
    assert worker.sandbox.record.layers == (old,)
    new = world.root_layers[domain]
    assert new != old
    assert domain not in world.frozen, "it goes on"
    world.written[new] = 7
    await driver.kill()
    done = json.dumps({"op": "done", "key": lost})
    assert not lost or done in world.journals["s1"]
    world.journals["s1"] = [line for line in world.journals["s1"] if line != done]
    if ends:
        world.qemu_ends(domain)
    again = FakeDriver(world)
    world.fail = lambda _call: False
    await again.manager.recover()
    await again.settled()
    assert again.record().layers == (old, new)
    assert new in world.files
    assert world.written[new] == 7
    await again.close()


async def test_a_layer_stays_claimed_until_the_record_on_disk_stands_on_it() -> None:
    """A stop, on a disk where the ledger still has room and the record has not; then a kill."""
    driver = await running()
    found, worker = operations(driver)
    world, domain = driver.world, worker.sandbox.record.plan.domain
    switched: list[str] = []

    def fails(call: str) -> bool:
        if call.startswith("switch"):
            switched.append(call)
        return bool(switched) and call == "save record"

    world.fail = fails
    with pytest.raises(HostError):
        await found.create_snapshot(worker, "a", disk_only=True)
    new = world.root_layers[domain]
    assert new not in worker.sandbox.record.layers
    world.written[new] = 7
    # The wish itself finds room; nothing after it does.
    world.fail = lambda call: (
        call == "save record" and worker.sandbox.record.intent is not Intent.RUNNING
    )
    stopping = asyncio.create_task(driver.manager.stop("s1", ""))
    async with asyncio.timeout(5):
        while domain in world.domains or driver.inside.is_busy():
            await asyncio.sleep(0.001)
    await driver.kill()
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    world.fail = lambda _call: False
    again = FakeDriver(world)
    await again.manager.recover()
    await again.settled()
    layers = again.record().layers
    assert set(layers) <= world.files
    assert max(world.written.get(layer, 0) for layer in layers) == 7
    await again.close()


@pytest.mark.parametrize("runs", [True, False])
async def test_a_new_layer_is_durable_before_anything_stands_on_it(runs: bool) -> None:
    """A power cut may come right after the record says so."""
    driver = await running()
    found, worker = operations(driver)
    world = driver.world
    if not runs:
        await driver.wish("s1", Wish.STOP)
        await driver.settled()
    world.calls.clear()
    await found.create_snapshot(worker, "a", disk_only=True)
    new = worker.sandbox.record.layers[-1]
    noted = (
        f"switch {worker.sandbox.record.plan.domain} to {new}"
        if runs
        else "save record"
    )
    made, synced = f"create overlay {new}", f"sync {new}"
    assert world.calls.index(made) < world.calls.index(synced)
    assert world.calls.index(synced) < world.calls.index(noted)
    await driver.close()
