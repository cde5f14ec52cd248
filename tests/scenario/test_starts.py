"""What a gateway learns of a start, and an operator of a gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.service import Served, served
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.engine.broadcast import Changed, Happened
from vmdriver.model.phase import Phase


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


async def start(s: Served) -> None:
    await s.stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"))


async def conditions(watch: Any, count: int) -> list[tuple[str, str, str]]:
    """Of the next `count` snapshots that a watcher is shown."""
    shown: list[tuple[str, str, str]] = []
    async with asyncio.timeout(5):
        while len(shown) < count:
            event = await watch.read()
            if event.WhichOneof("payload") == "sandbox":
                first = event.sandbox.sandbox.status.conditions[0]
                shown.append((first.type, first.status, first.reason))
    return shown


async def test_a_start_of_what_runs_shows_it_again_so_that_no_row_stays_starting(
    short: Path,
) -> None:
    async with served(short) as s:
        await s.create()
        watch = s.stub.WatchSandboxes(pb.WatchSandboxesRequest())
        running = ("Ready", "True", "Running")
        assert await conditions(watch, 1) == [running]
        await start(s)
        assert await conditions(watch, 1) == [running]
        watch.cancel()


async def test_a_start_that_is_repeated_while_the_machine_comes_up_is_shown_as_starting(
    short: Path,
) -> None:
    world = World()
    async with served(short, world=world) as s:
        await s.create()
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        go_on, real = asyncio.Event(), s.driver.hypervisor.start

        async def slow(plan: object, mark: str) -> None:
            await go_on.wait()
            await real(plan, mark)

        s.driver.hypervisor.start = slow
        await start(s)
        await s.driver.in_phase("s1", Phase.LAUNCHING)
        watch = s.stub.WatchSandboxes(pb.WatchSandboxesRequest())
        starting = ("Ready", "False", "Starting")
        assert await conditions(watch, 1) == [starting]
        await start(s)
        assert await conditions(watch, 1) == [starting]
        go_on.set()
        assert await conditions(watch, 1) == [("Ready", "True", "Running")]
        watch.cancel()


async def running() -> tuple[FakeDriver, Operations]:
    driver = FakeDriver(World())
    await driver.manager.recover()
    await driver.manager.create(spec(driver_config={"on_stop": "suspend"}), None)
    await driver.settled()
    return driver, Operations(driver.manager)


async def notices(subscription: Any, reason: str) -> list[Any]:
    """Everything up to the event of that reason."""
    found: list[Any] = []
    async with asyncio.timeout(5):
        while True:
            found.append(await subscription.next())
            if isinstance(found[-1], Happened) and found[-1].event.reason == reason:
                return found


async def test_a_resume_by_an_operator_says_what_a_gateway_goes_on_saying() -> None:
    driver, operations = await running()
    worker = operations.find("s1")
    await operations.suspend(worker)
    watch = driver.broadcaster.subscribe()
    await operations.resume(worker)
    told = await notices(watch, "GatewaySaysStopped")
    assert "`openshell sandbox start name-s1`" in told[-1].event.message
    await operations.resume(worker)
    driver.broadcaster.close()
    left = [await watch.next() for _ in range(2)]
    assert not any(isinstance(n, Happened) for n in left), (
        "no row is wrong where nothing was down"
    )
    await driver.close()


async def test_a_return_to_a_snapshot_of_what_runs_never_shows_it_as_stopped() -> None:
    driver, operations = await running()
    worker = operations.find("s1")
    await operations.create_snapshot(worker, "one", disk_only=False)
    watch = driver.broadcaster.subscribe()
    await operations.restore_snapshot(worker, "one")
    driver.broadcaster.close()
    shown = []
    while (notice := await watch.next()) is not None:
        if isinstance(notice, Changed):
            shown.append(notice.status.conditions[0].type)
    assert len(shown) > 1
    assert set(shown) == {"Ready"}
    await driver.close()
