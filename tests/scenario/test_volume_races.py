"""Volumes while two want something of one, and under memory that is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.gate import Gate
from tests.fakes.world import World
from vmdriver.errors import HostError, Refused
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.phase import Phase
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.volume import volume_id

DATA = volume_id("", "data")


def wanting(**more: Any) -> SandboxSpec:
    """A sandbox with the volume "data"."""
    volume = {"name": "data", "mount": "/data", "size_mib": 64, **more}
    return spec(driver_config={"volumes": [volume]})


async def running(driver: FakeDriver, one: SandboxSpec) -> None:
    await driver.manager.create(one, None)
    await driver.settled()


def attached(driver: FakeDriver) -> dict[str, bool]:
    volumes = driver.core.volumes
    return volumes.holders(volumes.find("", "data"))


async def pieces(*found: Piece) -> AsyncIterator[Piece]:
    for piece in found:
        yield piece


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def driver(gate: Gate) -> AsyncIterator[FakeDriver]:
    driver = FakeDriver(World(), gate)
    await driver.manager.recover()
    yield driver
    gate.open()
    await driver.close()


async def test_what_a_machine_is_being_let_into_is_not_exported(
    driver: FakeDriver, gate: Gate
) -> None:
    jobs = driver.manager.volume_jobs
    await jobs.receive("", "data", 64, pieces(Piece(0, b"a")))
    gate.shut("volume:note")
    await driver.manager.create(wanting(), None)
    await gate.reached()
    first = asyncio.ensure_future(anext(aiter(jobs.content("", "data"))))
    await asyncio.sleep(0)
    gate.open()
    with pytest.raises(Refused, match="attached to sandbox s1") as caught:
        await first
    assert caught.value.reason == "VolumeInUse"
    await driver.settled()
    assert attached(driver) == {"s1": False}


async def test_a_volume_that_cannot_grow_is_as_it_was(driver: FakeDriver) -> None:
    """As where the host's file system takes no file of that size, ever."""
    jobs = driver.manager.volume_jobs
    await jobs.receive("", "data", 64, pieces(Piece(0, b"a")))
    driver.world.fail = lambda made: made.startswith("grow volume")
    with pytest.raises(HostError, match="on purpose"):
        await jobs.grow("", "data", 2**16)
    driver.world.fail = lambda _: False
    (seen,) = await jobs.all()
    assert seen.volume.size_mib == 64
    assert '"size_mib":64' in driver.world.volumes.notes[DATA]
    await jobs.grow("", "data", 128)


@pytest.mark.parametrize("meanwhile", ["removed", "grown"])
async def test_a_volume_that_changed_after_the_plan_fails_the_start(
    driver: FakeDriver, gate: Gate, meanwhile: str
) -> None:
    jobs = driver.manager.volume_jobs
    await jobs.receive("", "data", 64, pieces(Piece(0, b"a")))
    gate.shut("volumes:before-intent")
    await driver.manager.create(wanting(read_only=True, size_mib=None), None)
    await gate.reached()
    if meanwhile == "removed":
        await jobs.remove("", "data")
    else:
        await jobs.grow("", "data", 2**16)
    gate.open()
    await driver.settled()
    assert driver.phase() is Phase.FAILED
    reason = "VolumeMissing" if meanwhile == "removed" else "VolumeBusy"
    assert reason in driver.failure().message
    assert (DATA in driver.world.volumes.notes) == (meanwhile == "grown")
    if meanwhile == "grown":
        await driver.manager.start("s1", "")
        await driver.settled()
        assert driver.phase() is Phase.RUNNING


@pytest.mark.parametrize("size_mib", [None, 64])
async def test_a_volume_that_was_removed_after_the_plan_is_made_only_where_that_is_asked(
    driver: FakeDriver, gate: Gate, size_mib: int | None
) -> None:
    jobs = driver.manager.volume_jobs
    await jobs.receive("", "data", 64, pieces(Piece(0, b"a")))
    gate.shut("volumes:before-intent")
    await driver.manager.create(wanting(size_mib=size_mib), None)
    await gate.reached()
    await jobs.remove("", "data")
    gate.open()
    await driver.settled()
    if size_mib is None:
        assert driver.phase() is Phase.FAILED
        assert "VolumeMissing" in driver.failure().message
    else:
        assert driver.phase() is Phase.RUNNING
    assert (DATA in driver.world.volumes.notes) == (size_mib is not None)


async def test_memory_does_not_go_on_with_a_volume_that_others_have_changed(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    (volume,) = driver.plan().volumes
    await Operations(driver.manager).suspend(driver.worker())
    driver.world.written[driver.plan().disk(volume.role).path] = 7
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert "was changed after the capture" in driver.record().note
    assert attached(driver) == {"s1": False}


async def test_a_suspended_reader_goes_on_beside_an_export(driver: FakeDriver) -> None:
    jobs = driver.manager.volume_jobs
    await jobs.receive("", "data", 64, pieces(Piece(0, b"a")))
    await running(driver, wanting(read_only=True))
    await Operations(driver.manager).suspend(driver.worker())
    exporting = aiter(jobs.content("", "data"))
    await anext(exporting)
    await driver.manager.start("s1", "")
    await driver.settled()
    assert [piece async for piece in exporting] == [Piece(2**26, b"")]
    assert driver.phase() is Phase.RUNNING
    assert not driver.record().note, "its memory went on"
