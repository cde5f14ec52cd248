"""Volumes of sandboxes: made on first use, had by one at a time, never lost."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

from tests.fakes.crashes import Bomb, BombAtCalls, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.paths import FakePaths
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from vmdriver.errors import (
    AlreadyExists,
    DriverError,
    Exhausted,
    InvalidRequest,
    NotFound,
    Refused,
)
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.ports.paths import BootChoice
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.phase import Phase
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.volume import volume_id

DATA = volume_id("", "data")


def wanting(sandbox_id: str = "s1", workspace: str = "", **more: Any) -> SandboxSpec:
    """A sandbox with the volume "data"."""
    volume = {"name": "data", "mount": "/data", "size_mib": 64, **more}
    return spec(sandbox_id, workspace=workspace, driver_config={"volumes": [volume]})


async def running(driver: FakeDriver, *specs: SandboxSpec) -> None:
    for one in specs:
        await driver.manager.create(one, None)
    await driver.settled()


def attached(driver: FakeDriver, workspace: str = "") -> dict[str, bool]:
    volumes = driver.core.volumes
    return volumes.holders(volumes.find(workspace, "data"))


async def test_a_volume_is_made_on_first_use_and_outlives_its_sandbox(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    assert driver.phase() is Phase.RUNNING
    (volume,) = driver.plan().volumes
    disk = driver.plan().disk(volume.role)
    assert (volume.mount, disk.read_only, disk.size_mib) == ("/data", False, 64)
    assert attached(driver) == {"s1": False}
    there = driver.world.volumes
    there.content[DATA][0] = b"of s1"
    await driver.manager.stop("s1", "")
    assert attached(driver) == {}
    assert not there.writers[DATA], "nobody has a right to it"
    await driver.manager.delete("s1", "")
    await running(driver, wanting("s2"))
    assert attached(driver) == {"s2": False}
    assert there.content[DATA] == {0: b"of s1"}
    told = [h.event for h in driver.broadcaster.recent()]
    assert "data at /data" in next(
        e.message for e in told if e.reason == "VolumesAttached"
    )


async def test_one_writes_to_a_volume_or_many_read_it(driver: FakeDriver) -> None:
    await running(driver, wanting())
    for read_only in (False, True):
        with pytest.raises(Refused, match="attached to sandbox s1") as caught:
            await driver.manager.create(wanting("s2", read_only=read_only), None)
        assert caught.value.reason == "VolumeInUse"
        with pytest.raises(Refused, match="attached to sandbox s1"):
            await driver.manager.validate(wanting("s2", read_only=read_only))
    assert driver.sandboxes() == ["s1"]
    await driver.manager.stop("s1", "")
    await running(driver, wanting("s2", read_only=True), wanting("s3", read_only=True))
    assert attached(driver) == {"s2": True, "s3": True}
    assert len(driver.world.volumes.readers[DATA]) == 2
    with pytest.raises(Refused, match="which reads it"):
        await driver.manager.create(wanting("s4"), None)
    await driver.manager.start("s1", "")
    await driver.settled()
    assert "VolumeInUse" not in driver.held("s1")
    assert driver.phase("s1") is Phase.FAILED
    assert "attached to sandbox s2" in driver.failure("s1").message
    assert attached(driver) == {"s2": True, "s3": True}
    for name in ("s2", "s3"):
        await driver.manager.delete(name, "")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert attached(driver) == {"s1": False}


async def test_of_two_creates_at_once_one_gets_the_volume(driver: FakeDriver) -> None:
    await asyncio.gather(
        driver.manager.create(wanting("s1"), None),
        driver.manager.create(wanting("s2"), None),
    )
    await driver.settled()
    phases = [driver.phase("s1"), driver.phase("s2")]
    assert sorted(phases) == [Phase.FAILED, Phase.RUNNING]
    winner, other = ("s1", "s2") if phases[0] is Phase.RUNNING else ("s2", "s1")
    said = driver.failure(other).message
    assert f"attached to sandbox {winner}" in said or "is being made" in said
    assert attached(driver) == {winner: False}
    assert len(driver.world.volumes.notes) == 1


async def test_workspaces_do_not_see_each_others_volumes(driver: FakeDriver) -> None:
    await running(driver, wanting("s1", "red"), wanting("s2", "blue"))
    assert driver.phase("s2") is Phase.RUNNING
    assert attached(driver, "red") == {"s1": False}
    assert attached(driver, "blue") == {"s2": False}
    with pytest.raises(NotFound):
        attached(driver)


async def looked_once_more(driver: FakeDriver) -> None:
    """All that is done at rest is done."""
    driver.worker().start()
    await driver.settled()


async def test_a_suspended_sandbox_keeps_its_volume(driver: FakeDriver) -> None:
    operations = Operations(driver.manager)
    await running(driver, wanting())
    await operations.suspend(driver.worker())
    await looked_once_more(driver)
    assert driver.phase() is Phase.SUSPENDED
    assert attached(driver) == {"s1": False}
    with pytest.raises(Refused, match="attached to sandbox s1"):
        await driver.manager.create(wanting("s2"), None)
    with pytest.raises(Refused, match="attached to sandbox s1"):
        await driver.manager.volume_jobs.grow("", "data", 128)
    again = FakeDriver(driver.world)
    await again.manager.recover()
    await looked_once_more(again)
    assert attached(again) == {"s1": False}, "a new driver knows it too"
    await again.manager.start("s1", "")
    await again.settled()
    assert again.phase() is Phase.RUNNING
    assert attached(again) == {"s1": False}
    await again.close()


async def test_with_its_memory_a_stopped_sandbox_lets_its_volume_go(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    await Operations(driver.manager).suspend(driver.worker())
    await driver.worker().sandbox.decide(lambda _: {"cold": True})
    driver.worker().start()
    await driver.in_phase("s1", Phase.STOPPED)
    await driver.settled()
    assert attached(driver) == {}
    assert driver.held() == {"lease", "machine-user", "overlay"}


async def test_a_suspended_sandbox_that_is_deleted_leaves_the_volume(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    await Operations(driver.manager).suspend(driver.worker())
    await driver.manager.delete("s1", "")
    assert attached(driver) == {}
    assert DATA in driver.world.volumes.content


async def test_a_snapshot_with_memory_is_refused_and_one_of_the_disk_is_not(
    driver: FakeDriver,
) -> None:
    operations = Operations(driver.manager)
    await running(driver, wanting())
    with pytest.raises(Refused, match="another content of theirs") as caught:
        await operations.create_snapshot(driver.worker(), "a", disk_only=False)
    assert caught.value.reason == "VolumeAttached"
    await operations.create_snapshot(driver.worker(), "a", disk_only=True)
    forked = spec("s2", driver_config={"from_snapshot": "s1/a"})
    await running(driver, forked)
    assert driver.phase("s2") is Phase.RUNNING
    assert driver.plan("s2").volumes == ()
    await operations.restore_snapshot(driver.worker(), "a")
    assert attached(driver) == {"s1": False}


async def test_no_template_is_made_of_or_used_for_a_machine_with_volumes() -> None:
    settings = dataclasses.replace(SETTINGS, templates_enabled=True)
    driver = FakeDriver(World(), settings=settings)
    await driver.manager.recover()
    await running(driver, wanting())
    assert driver.core.templates.listed() == []
    assert await driver.core.templates.key_of(driver.plan(), "") == ""
    await driver.close()


async def test_what_cannot_be_had_is_refused_at_create(driver: FakeDriver) -> None:
    bare = {"name": "data", "mount": "/data"}
    with pytest.raises(InvalidRequest, match="no volume 'data' yet"):
        await driver.manager.create(spec(driver_config={"volumes": [bare]}), None)
    with pytest.raises(NotFound, match="to read") as caught:
        await driver.manager.create(wanting(read_only=True), None)
    assert caught.value.reason == "VolumeMissing"
    await driver.manager.volume_jobs.create("", "data", 64)
    await driver.manager.validate(spec(driver_config={"volumes": [bare]}))
    with pytest.raises(Refused, match="has 64 MiB, not 65") as refused:
        await driver.manager.create(wanting(size_mib=65), None)
    assert refused.value.reason == "VolumeTooSmall"
    assert driver.sandboxes() == []


async def test_quotas_count_what_there_is_and_what_is_being_made() -> None:
    settings = dataclasses.replace(
        SETTINGS, max_workspace_volumes_mib=100, max_volumes_mib=150
    )
    driver = FakeDriver(World(), settings=settings)
    await driver.manager.recover()
    jobs = driver.manager.volume_jobs
    await running(driver, wanting("s1", "red"))
    for wanted in (wanting("s2", "red"), wanting("s2", "red", name="more")):
        with pytest.raises(DriverError):
            await driver.manager.create(wanted, None)
    with pytest.raises(Exhausted, match="max_workspace_volumes_mib") as caught:
        await jobs.create("red", "more", 37)
    assert caught.value.reason == "VolumeQuota"
    made = await asyncio.gather(
        jobs.create("blue", "a", 80),
        jobs.create("green", "a", 80),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in made) == ["Exhausted", "SeenVolume"]
    await jobs.remove("blue", "a")
    with pytest.raises(Exhausted, match="max_workspace_volumes_mib"):
        await jobs.create("blue", "b", 101)
    await jobs.create("blue", "a", 16)
    with pytest.raises(Exhausted, match="max_workspace_volumes_mib"):
        await jobs.grow("blue", "a", 101)
    with pytest.raises(Exhausted, match="max_volumes_mib"):
        await jobs.grow("blue", "a", 99)
    await driver.close()


async def test_operators_make_grow_and_remove_volumes(driver: FakeDriver) -> None:
    jobs = driver.manager.volume_jobs
    seen = await jobs.create("w", "data", 64)
    assert (seen.volume.size_mib, seen.sandboxes) == (64, ())
    with pytest.raises(AlreadyExists):
        await jobs.create("w", "data", 64)
    with pytest.raises(InvalidRequest, match="would be lost"):
        await jobs.grow("w", "data", 63)
    grown = await jobs.grow("w", "data", 128)
    assert grown.volume.size_mib == 128
    assert driver.world.volumes.sizes_mib[volume_id("w", "data")] == 128
    await running(driver, wanting("s1", "w"))
    with pytest.raises(Refused, match="attached to sandbox s1") as caught:
        await jobs.remove("w", "data")
    assert caught.value.reason == "VolumeInUse"
    (seen,) = await jobs.all()
    assert (seen.sandboxes, seen.read_only) == (("s1",), False)
    await driver.manager.stop("s1", "")
    await jobs.remove("w", "data")
    assert await jobs.all() == []
    with pytest.raises(NotFound):
        await jobs.remove("w", "data")
    for name, size in (("../x", 64), ("x", 1), ("x", 2**40)):
        with pytest.raises(InvalidRequest):
            await jobs.create("w", name, size)


async def pieces(*found: Piece, fails: bool = False) -> AsyncIterator[Piece]:
    for piece in found:
        yield piece
    if fails:
        raise InvalidRequest("piece", "has no end")


async def test_a_volume_is_exported_and_imported(driver: FakeDriver) -> None:
    jobs, there = driver.manager.volume_jobs, driver.world.volumes
    await jobs.receive("", "data", 64, pieces(Piece(0, b"a"), Piece(2**20, b"b")))
    assert there.content[DATA] == {0: b"a", 2**20: b"b"}
    out = [piece async for piece in jobs.content("", "data")]
    assert out == [Piece(0, b"a"), Piece(2**20, b"b"), Piece(2**26, b"")]
    with pytest.raises(InvalidRequest, match="no end"):
        await jobs.receive("", "half", 64, pieces(Piece(0, b"a"), fails=True))
    assert not there.beside
    assert [seen.volume.name for seen in await jobs.all()] == ["data"]
    await running(driver, wanting())
    with pytest.raises(Refused, match="attached to sandbox s1"):
        await anext(aiter(jobs.content("", "data")))


async def test_nobody_writes_to_a_volume_while_it_is_exported(
    driver: FakeDriver,
) -> None:
    jobs = driver.manager.volume_jobs
    await jobs.receive("", "data", 64, pieces(Piece(0, b"a")))
    exporting = aiter(jobs.content("", "data"))
    await anext(exporting)
    for doing in (
        driver.manager.create(wanting(), None),
        jobs.remove("", "data"),
        jobs.grow("", "data", 128),
    ):
        with pytest.raises(Refused, match="is being exported") as caught:
            await doing
        assert caught.value.reason == "VolumeBusy"
    await running(driver, wanting("s2", read_only=True))
    assert attached(driver) == {"s2": True}, "who only reads need not wait"
    assert [piece.offset async for piece in exporting] == [2**26]
    await driver.manager.delete("s2", "")
    await running(driver, wanting())
    assert attached(driver) == {"s1": False}


async def test_an_import_that_is_cut_off_leaves_nothing(driver: FakeDriver) -> None:
    jobs, reached = driver.manager.volume_jobs, asyncio.Event()

    async def endless() -> AsyncIterator[Piece]:
        yield Piece(0, b"a")
        reached.set()
        await asyncio.Event().wait()

    importing = asyncio.create_task(jobs.receive("", "data", 64, endless()))
    await reached.wait()
    with pytest.raises(Refused, match="is being made"):
        await jobs.create("", "data", 64)
    importing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await importing
    assert not driver.world.volumes.beside
    await jobs.create("", "data", 64)


@pytest.mark.parametrize(
    "call", ["make volume", "publish volume", "note volume", "let into volume"]
)
async def test_a_volume_that_cannot_be_had_fails_the_launch_and_keeps_nothing(
    call: str,
) -> None:
    world = World()
    world.fail = lambda made: made.startswith(call)
    driver = FakeDriver(world)
    await driver.manager.recover()
    await running(driver, wanting())
    assert driver.phase() is Phase.FAILED
    assert "on purpose" in driver.failure().message
    assert not world.domains
    assert not world.volumes.beside
    assert "volumes" not in driver.held()
    world.fail = lambda _: False
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await driver.close()


@pytest.mark.parametrize("ending", ["stop", "delete"])
async def test_a_machine_that_cannot_be_ended_keeps_its_volume(
    driver: FakeDriver, ending: str
) -> None:
    await running(driver, wanting())
    domain = driver.plan().domain
    driver.world.fail = lambda made: made == f"destroy {domain}"
    asked = asyncio.create_task(getattr(driver.manager, ending)("s1", ""))
    await driver.troubled()
    assert attached(driver) == {"s1": False}
    with pytest.raises(Refused, match="attached to sandbox s1"):
        await driver.manager.create(wanting("s2"), None)
    driver.world.fail = lambda _: False
    driver.hint()
    await asked
    await driver.settled()
    assert attached(driver) == {}


async def test_a_full_disk_keeps_no_volume_from_the_next_sandbox() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await running(driver, wanting())
    world.fail = lambda made: made.startswith("note volume")
    await driver.manager.stop("s1", "")
    assert attached(driver) == {}
    assert '"s1":false' in world.volumes.notes[DATA], "the note is old"
    world.fail = lambda _: False
    again = FakeDriver(world)
    await again.manager.recover()
    await running(again, wanting("s2"))
    assert attached(again) == {"s2": False}
    await again.close()
    await driver.close()


async def test_a_sandbox_that_cannot_be_read_keeps_its_volume() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await running(driver, wanting())
    await driver.close()
    world.records["s1"] = "{"
    again = FakeDriver(world)
    await again.manager.recover()
    assert attached(again) == {"s1": False}
    with pytest.raises(Refused, match="attached to sandbox s1"):
        await again.manager.create(wanting("s2"), None)
    await again.manager.delete("s1", "")
    assert attached(again) == {}
    await running(again, wanting("s2"))
    assert again.phase("s2") is Phase.RUNNING
    await again.close()


async def test_a_volume_whose_note_makes_no_sense_is_left_alone() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.volume_jobs.create("", "data", 64)
    await driver.close()
    kept, world.volumes.notes[DATA] = world.volumes.notes[DATA], "{"
    again = FakeDriver(world)
    await again.manager.recover()
    for doing in (
        again.manager.create(wanting(), None),
        again.manager.volume_jobs.create("", "data", 64),
        again.manager.volume_jobs.remove("", "data"),
    ):
        with pytest.raises(Refused) as caught:
            await doing
        assert caught.value.reason == "VolumeUnreadable"
    assert DATA in world.volumes.content
    await again.close()
    world.volumes.notes[DATA] = kept
    third = FakeDriver(world)
    await third.manager.recover()
    await running(third, wanting())
    assert third.phase() is Phase.RUNNING
    await third.close()


async def test_boot_files_that_know_no_volumes_start_no_machine_with_one() -> None:
    class Earlier(FakePaths):
        def boot(self) -> BootChoice:
            return dataclasses.replace(super().boot(), knows=())

    driver = FakeDriver(World(), paths=Earlier())
    await driver.manager.recover()
    await running(driver, wanting(), spec("s2"))
    assert driver.phase("s1") is Phase.FAILED
    assert "know no volumes" in driver.failure("s1").message
    assert driver.phase("s2") is Phase.RUNNING
    assert not driver.world.volumes.notes
    await driver.close()


# --- killed anywhere

SEQUENCES = {
    "create-stop-start": ("create", "stop", "start"),
    "create-delete": ("create", "delete"),
    "suspend-resume-stop": ("create", "suspend", "start", "stop"),
    "suspend-delete": ("create", "suspend", "delete"),
    "grow": ("create", "stop", "grow", "start"),
}


async def perform(driver: FakeDriver, step: str) -> None:
    manager = driver.manager
    try:
        if step == "create":
            await manager.create(wanting(), None)
        elif step == "suspend":
            await Operations(manager).suspend(driver.worker())
        elif step == "grow":
            await manager.volume_jobs.grow("", "data", 128)
        else:
            await getattr(manager, step)("s1", "")
    except AlreadyExists:
        pass
    await driver.settled()


async def played(world: World, bomb: Bomb, steps: tuple[str, ...]) -> bool:
    driver = FakeDriver(world, bomb)

    async def play() -> None:
        for step in steps:
            await perform(driver, step)
            if step == "create":
                world.volumes.content[DATA][0] = b"kept"

    return await played_until_crash(driver, bomb, play)


@pytest.mark.parametrize("kind", [Bomb, BombAtCalls])
@pytest.mark.parametrize("name", SEQUENCES)
async def test_a_crash_anywhere_loses_no_volume_and_leaves_it_to_nobody_else(
    name: str, kind: type[Bomb]
) -> None:
    steps, world = SEQUENCES[name], World()
    bomb = kind(world)
    assert not await played(world, bomb, steps)
    assert bomb.passed > 20
    for at in range(bomb.passed):
        world = World()
        assert await played(world, kind(world, at), steps), f"no crash at {at}"
        await check_recovery(world, steps)


async def check_recovery(world: World, steps: tuple[str, ...]) -> None:
    """The next driver reaches the end; then the volume is another's to have, with all in it."""
    written = bool(world.volumes.content.get(DATA))
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    assert not world.volumes.beside
    for step in steps if driver.knows() or "delete" not in steps else ():
        if (step == "create" or step == "suspend") and driver.knows():
            continue
        await perform(driver, step)
    runs = driver.knows() and driver.phase() is Phase.RUNNING
    if DATA in world.volumes.notes:
        assert attached(driver) == ({"s1": False} if runs else {})
    if driver.knows():
        assert runs or driver.phase() is Phase.STOPPED
        if "grow" in steps:
            assert world.volumes.sizes_mib[DATA] == 128
        await driver.manager.delete("s1", "")
    assert not any(world.volumes.writers.values())
    if written:
        assert world.volumes.content[DATA] == {0: b"kept"}
    await running(driver, wanting("s2"))
    assert driver.phase("s2") is Phase.RUNNING
    assert attached(driver) == {"s2": False}
    await driver.close()


async def operate(driver: FakeDriver, command: str) -> None:
    jobs = driver.manager.volume_jobs
    if command == "create":
        await jobs.create("", "data", 64)
    elif command == "import":
        await jobs.receive("", "data", 64, pieces(Piece(0, b"a"), Piece(1, b"b")))
    elif command == "grow":
        await jobs.grow("", "old", 128)
    else:
        await jobs.remove("", "old")


@pytest.mark.parametrize("command", ["create", "import", "grow", "rm"])
async def test_an_operators_command_that_is_killed_anywhere_is_done_or_not(
    command: str,
) -> None:
    """And can be asked for once more."""
    for at in range(20):
        world = World()
        driver = FakeDriver(world)
        await driver.manager.recover()
        await driver.manager.volume_jobs.create("", "old", 64)
        await driver.close()
        bomb, old = BombAtCalls(world, at), volume_id("", "old")
        killed = FakeDriver(world, bomb)
        if not await played_until_crash(
            killed, bomb, partial(operate, killed, command)
        ):
            assert at > 1, "there is something to kill"
            return
        again = FakeDriver(world)
        await again.manager.recover()
        assert not world.volumes.beside
        if DATA in world.volumes.notes and command == "import":
            assert world.volumes.content[DATA] == {0: b"a", 1: b"b"}
        try:
            await operate(again, command)
        except (AlreadyExists, NotFound):
            assert command != "grow"
        if command == "grow":
            assert world.volumes.sizes_mib[old] == 128
        elif command == "rm":
            assert old not in world.volumes.notes
        else:
            assert DATA in world.volumes.notes
            assert old in world.volumes.notes
        await again.close()
    pytest.fail("it has no end")
