"""Trouble that nobody thought of: it is answered, told, and ends nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import errno

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.limits import limit
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import BOUND_S, eventually
from vmdriver.errors import DriverError, HostError, NotFound, Refused
from vmdriver.extension import LifecycleExtension
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.model.checkpoint import SeenAge
from vmdriver.model.phase import DomainState, Phase
from vmdriver.model.record import SandboxRecord


async def running(world: World | None = None, **options: object) -> FakeDriver:
    driver = FakeDriver(world or World(), **options)
    await driver.manager.recover()
    for sandbox_id in ("s1", "s2"):
        await driver.manager.create(spec(sandbox_id), None)
    await driver.settled()
    return driver


async def test_a_job_that_fails_unexpectedly_is_answered_at_once() -> None:
    driver = await running()
    found = Operations(driver.manager)
    worker = found.find("s1")

    async def broken(_domain: str, _layer: str) -> None:
        raise ZeroDivisionError("nobody thought of that")

    driver.memory.switch_layer = broken  # type: ignore[method-assign]
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(HostError, match="internal error"):
            await found.create_snapshot(worker, "a", disk_only=True)
        del driver.memory.switch_layer
        await driver.settled()
        await found.create_snapshot(worker, "b", disk_only=True)
    assert [entry.name for entry in worker.sandbox.record.snapshots] == ["b"]
    assert not driver.world.frozen
    await driver.close()


async def test_what_the_host_refuses_a_snapshot_is_said_with_the_way_out() -> None:
    driver = await running()
    found = Operations(driver.manager)
    worker = found.find("s1")

    async def refused(*_: object, **__: object) -> str:
        text = "Read-only file system"
        raise OSError(errno.EROFS, text, "/srv/state/sandboxes/s1/capture.part")

    driver.inside.ports.memory_store.begin = refused  # type: ignore[method-assign]
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(HostError, match=r"^capture\.part: Read-only") as caught:
            await found.create_snapshot(worker, "a", disk_only=False)
    assert caught.value.reason == "DiskReadOnly"
    assert "mount it" in caught.value.resolution
    assert not worker.sandbox.record.snapshots
    await driver.settled()
    assert driver.phase("s1") is Phase.RUNNING
    await driver.close()


async def test_what_the_host_refuses_a_launch_is_the_sandboxs_failure() -> None:
    driver = await running()

    async def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files", "/srv/state/status.img")

    driver.inside.ports.launch_files.write = refused  # type: ignore[method-assign]
    await driver.manager.create(spec("s3"), None)
    await driver.settled()
    failure = driver.record("s3").failure
    assert failure is not None
    assert "status.img: Too many open files" in failure.message
    assert "LimitNOFILE" in failure.message
    await driver.close()


async def test_what_the_host_refuses_a_delete_is_told_and_tried_again() -> None:
    driver = await running()
    world, records = driver.world, driver.inside.ports.records
    remove = records.remove

    async def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/srv/state/deleted/s1")

    records.remove = refused  # type: ignore[method-assign]
    deleting = asyncio.create_task(driver.manager.delete("s1", ""))
    await driver.troubled()
    assert "No space left on device: free some space" in driver.trouble("s1")
    records.remove = remove  # type: ignore[method-assign]
    driver.hint()
    assert await deleting
    assert "s1" not in world.records
    await driver.close()


async def test_whoever_waits_for_a_sandbox_in_trouble_is_told_of_it() -> None:
    """A loop that fails again and again gets to no job."""
    driver = await running()
    worker = Operations(driver.manager).find("s1")

    async def broken(_domain: str) -> None:
        raise HostError("the hypervisor is away")

    driver.hypervisor.observe = broken  # type: ignore[assignment,method-assign]
    async with asyncio.timeout(5):
        with pytest.raises(HostError, match="the hypervisor is away"):
            await Operations(driver.manager).create_snapshot(
                worker, "a", disk_only=True
            )
    del driver.hypervisor.observe
    await driver.close()


async def test_a_job_for_a_sandbox_that_goes_is_refused() -> None:
    world = World()
    driver = await running(world)
    found = Operations(driver.manager)
    worker = found.find("s1")
    await found.create_snapshot(worker, "a", disk_only=True)
    world.fail = lambda call: call.startswith("destroy")
    deleting = asyncio.create_task(driver.manager.delete("s1", ""))
    await driver.troubled()
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(Refused, match="being deleted"):
            await found.delete_snapshot(worker, "a")
    world.fail = lambda _call: False
    driver.hint()
    await deleting
    with pytest.raises(NotFound):
        await found.delete_snapshot(worker, "a")
    await driver.close()


async def test_housekeeping_outlives_any_sandboxs_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(monkeypatch, consoles_every_s=0.001, retention_every=1, removal_s=0.2)
    driver = await running(
        settings=dataclasses.replace(SETTINGS, snapshot_retention_days=1)
    )
    found = Operations(driver.manager)
    for sandbox_id in ("s1", "s2"):
        worker = found.find(sandbox_id)
        await found.create_snapshot(worker, "old", disk_only=True)
        entry = worker.sandbox.record.snapshots[0]
        aged = SeenAge(seconds=3 * 86400)
        old = entry.model_copy(update={"age": aged})
        await driver.inside.update(sandbox_id, snapshots=(old,))
    bounded: list[str] = []
    both = asyncio.Event()

    async def bound(path: str) -> None:
        bounded.append(path)
        if path.startswith("s1"):
            raise ValueError("not a console at all")
        both.set()

    driver.inside.ports.disks.bound_console = bound  # type: ignore[method-assign]

    records = driver.inside.ports.records
    save = records.save

    async def never_the_first(record: SandboxRecord) -> None:
        if record.id == "s1":
            raise KeyError("its record makes no sense")
        await save(record)

    records.save = never_the_first  # type: ignore[method-assign]
    async with asyncio.timeout(5):
        await both.wait()
        while found.find("s2").sandbox.record.snapshots:
            await asyncio.sleep(0.001)
    assert driver.manager.housekeeping.task is not None
    assert not driver.manager.housekeeping.task.done()
    await driver.close()


async def test_the_upkeep_of_images_outlives_its_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(monkeypatch, upkeep_every_s=0.001)
    driver = FakeDriver(World())
    calls, again = [], asyncio.Event()

    async def collect(*_arguments: object, **_more: object) -> list[object]:
        calls.append(1)
        if len(calls) > 2:
            again.set()
        raise RuntimeError("a file that nobody expected")

    driver.inside.ports.images.collect = collect  # type: ignore[method-assign]
    await driver.manager.recover()
    async with asyncio.timeout(5):
        await again.wait()
    await driver.close()


async def test_an_adoption_that_fails_is_done_again() -> None:
    """A machine never goes on without its table because loading it failed once: it stands still
    until the guard, which tries again by itself, has loaded it.
    """
    world = World()
    first = await running(world)
    await first.kill()
    world.tables.clear()
    world.fail = lambda call: call.startswith("load rules")
    second = FakeDriver(world)
    await second.manager.recover()
    plans = [second.plan(name) for name in ("s1", "s2")]

    def all_are(state: DomainState) -> bool:
        return all(world.domains[plan.domain] is state for plan in plans)

    await eventually(lambda: all_are(DomainState.PAUSED), "they run on")
    assert not world.tables
    world.fail = lambda _call: False
    for plan in plans:
        await second.network_guard.look(plan.network.lease.tap)
    await eventually(lambda: all_are(DomainState.RUNNING), "they stand still")
    assert world.tables.keys() == {plan.network.lease.tap for plan in plans}
    await second.settled()
    assert second.phase("s1") is Phase.RUNNING
    await second.close()


class Waits(LifecycleExtension):
    """Thinks about forks until a test lets it."""

    name = "waits"

    def __init__(self) -> None:
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def before_fork(self, context, fork) -> None:  # type: ignore[no-untyped-def]
        self.asked.set()
        await self.go_on.wait()


async def test_nothing_starts_from_a_sandbox_that_is_being_deleted() -> None:
    world = World()
    driver = await running(world)
    found = Operations(driver.manager)
    await found.create_snapshot(found.find("s1"), "a", disk_only=True)
    world.fail = lambda call: call.startswith("destroy")
    deleting = asyncio.create_task(driver.manager.delete("s1", ""))
    await driver.troubled()
    fork = spec("s3", driver_config={"from_snapshot": "s1/a"})
    with pytest.raises(Refused, match="being deleted"):
        await driver.manager.validate(fork)
    with pytest.raises(Refused, match="being deleted"):
        await driver.manager.create(fork, None)
    world.fail = lambda _call: False
    driver.hint()
    await deleting
    assert "s3" not in world.records
    await driver.close()


async def test_a_delete_that_comes_while_a_fork_is_thought_about_wins() -> None:
    world, waits = World(), Waits()
    driver = await running(world, extensions=[waits])
    found = Operations(driver.manager)
    await found.create_snapshot(found.find("s1"), "a", disk_only=True)
    fork = spec("s3", driver_config={"from_snapshot": "s1/a"})
    creating = asyncio.create_task(driver.manager.create(fork, None))
    await waits.asked.wait()
    world.fail = lambda call: call == "remove record"
    deleting = asyncio.create_task(driver.manager.delete("s1", ""))
    await driver.troubled()  # its layers are gone, its record is not
    waits.go_on.set()
    with pytest.raises(DriverError):
        await creating
    assert "s3" not in world.records
    world.fail = lambda _call: False
    driver.hint()
    await deleting
    await driver.close()
