"""Volumes in snapshots: copies of one moment, and put back all or none."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.fakes.crashes import Bomb, BombAtCalls, Killer, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.kept_volumes import (
    AFTER,
    BEFORE,
    DATA,
    MORE,
    check_tidy,
    content,
    put_back,
    running,
    take,
    wanting,
    write,
)
from tests.fakes.world import World
from vmdriver.errors import (
    AlreadyExists,
    DriverError,
    Exhausted,
    HostError,
    NotFound,
    Refused,
    TimedOut,
)
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.memory import snapshot_volumes
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.phase import Phase


async def test_a_snapshot_has_the_volumes_of_a_running_machine_in_it(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    write(driver, BEFORE)
    await take(driver)
    write(driver, AFTER)
    (entry,) = driver.record().snapshots
    assert [(v.name, v.size_mib) for v in entry.volumes] == [("data", 64), ("more", 64)]
    assert entry.volume_bytes == 2 * len(b"before")
    assert entry.stored_bytes == entry.disk_bytes + entry.volume_bytes
    for name in ("data", "more"):
        assert await content(driver, name) == [Piece(0, b"before"), Piece(2**26, b"")]
    with pytest.raises(NotFound, match="has no volume 'other'"):
        await content(driver, "other")
    with pytest.raises(NotFound, match="no snapshot 'b'"):
        await content(driver, "data", "s1/b")
    assert "VolumesCopying" in [h.event.reason for h in driver.broadcaster.recent()]
    steps = {step.name: step for step in entry.steps}
    assert steps["copy volumes"].ended_ms <= steps["freeze"].begun_ms
    check_tidy(driver)
    await Operations(driver.manager).delete_snapshot(driver.worker(), "a")
    check_tidy(driver)
    assert driver.world.volumes.content[DATA] == AFTER


async def test_without_being_asked_a_snapshot_has_no_volumes(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    operations = Operations(driver.manager)
    await operations.create_snapshot(driver.worker(), "a", disk_only=True)
    (entry,) = driver.record().snapshots
    assert entry.volumes == ()
    with pytest.raises(Refused, match="has no volumes") as caught:
        await put_back(driver)
    assert caught.value.reason == "NoVolumesKept"
    for volumes in (False, True):
        with pytest.raises(Refused, match="another content of theirs"):
            await operations.create_snapshot(
                driver.worker(), "b", disk_only=False, volumes=volumes
            )
    check_tidy(driver)


@pytest.mark.parametrize("disk_only", [True, False])
async def test_of_a_machine_without_volumes_no_snapshot_is_taken_that_is_to_have_some(
    driver: FakeDriver, disk_only: bool
) -> None:
    await running(driver, spec())
    with pytest.raises(Refused, match="has no volumes") as caught:
        await Operations(driver.manager).create_snapshot(
            driver.worker(), "a", disk_only=disk_only, volumes=True
        )
    assert caught.value.reason == "NoVolumes"
    assert driver.record().snapshots == ()
    check_tidy(driver)


async def test_volumes_that_no_machine_writes_to_are_in_it_too(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    write(driver, BEFORE)
    await driver.manager.stop("s1", "")
    await take(driver)
    assert await content(driver, "more") == [Piece(0, b"before"), Piece(2**26, b"")]
    readers = wanting("s2", read_only=True), wanting("s3", read_only=True)
    await running(driver, *readers)
    await take(driver, "b", "s2")
    assert await content(driver, "data", "s2/b") == await content(driver, "data")
    for name in ("s2", "s3"):
        await driver.manager.delete(name, "")
    await running(driver, wanting("s4"))
    with pytest.raises(Refused, match="attached to sandbox s4, which writes") as caught:
        await take(driver, "c")
    assert caught.value.reason == "VolumeInUse"
    check_tidy(driver)


async def test_nobody_gets_a_volume_to_write_while_it_is_copied(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    write(driver, BEFORE)
    await driver.manager.stop("s1", "")
    refused: list[bool] = []

    def look(call: str) -> bool:
        if call.startswith("copy volume"):
            volumes = driver.core.volumes
            known = volumes.find("", "data")
            volumes.check_free(known, "s2", read_only=True)
            try:
                volumes.check_free(known, "s2", read_only=False)
            except Refused as error:
                refused.append(error.reason == "VolumeBusy")
        return False

    driver.world.fail = look
    await take(driver)
    assert refused == [True, True]
    driver.core.volumes.check_idle(driver.core.volumes.find("", "data"))


@pytest.mark.parametrize(
    "call",
    [
        *("begin copy", "copy disks of", "look at copies of", "end copies of"),
        *("switch", "seal copy"),
    ],
)
async def test_a_copy_that_fails_leaves_the_sandbox_as_it_was(
    driver: FakeDriver, call: str
) -> None:
    await running(driver, wanting())
    driver.world.fail = lambda made: made.startswith(call)
    with pytest.raises(HostError, match="on purpose"):
        await take(driver)
    driver.world.fail = lambda _: False
    await driver.settled()
    assert driver.record().snapshots == ()
    assert driver.phase() is Phase.RUNNING
    check_tidy(driver)
    await take(driver)
    check_tidy(driver)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_copying_leaves_space_on_the_disk(driver: FakeDriver, when: str) -> None:
    """Or every machine of the host would stand still."""
    await running(driver, wanting())
    write(driver, BEFORE)

    def filled(call: str) -> bool:
        if call.startswith("look at copies of"):
            driver.world.free_bytes = 2**28 - 1
        return False

    driver.world.fail = filled
    if when == "before":
        driver.world.free_bytes = 2**28
    with pytest.raises(Exhausted, match="free for copies") as caught:
        await take(driver)
    assert caught.value.reason == "DiskFull"
    made = any(call.startswith("begin copy") for call in driver.world.calls)
    assert made == (when == "meanwhile")
    assert driver.phase() is Phase.RUNNING
    check_tidy(driver)


async def test_what_is_written_faster_than_it_is_copied_is_not_waited_for(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_volumes, "LONGEST_S", 0.0)
    monkeypatch.setattr(snapshot_volumes, "SLOWEST_MIB_S", 2**30)
    await running(driver, wanting())
    with pytest.raises(TimedOut, match="not copied in time") as caught:
        await take(driver)
    assert caught.value.reason == "VolumesNotCopied"
    assert driver.plan().domain not in driver.world.frozen
    check_tidy(driver)


@pytest.mark.parametrize("ending", ["stop", "delete"])
async def test_copying_stands_in_no_stops_way(driver: FakeDriver, ending: str) -> None:
    await running(driver, wanting())
    domain = driver.plan().domain
    begun = asyncio.Event()

    def endless(call: str) -> bool:
        if call == f"look at copies of {domain}":
            driver.world.volumes.uncopied[domain] = 2**30
            begun.set()
        return False

    driver.world.fail = endless
    taking = asyncio.ensure_future(take(driver))
    await begun.wait()
    await getattr(driver.manager, ending)("s1", "")
    with pytest.raises(DriverError, match="cut off"):
        await taking
    await driver.settled()
    assert not driver.world.volumes.mirrors
    check_tidy(driver)


async def test_a_return_puts_the_volumes_back(driver: FakeDriver) -> None:
    await running(driver, wanting())
    write(driver, BEFORE)
    await take(driver)
    write(driver, AFTER)
    operations, there = Operations(driver.manager), driver.world.volumes
    await operations.restore_snapshot(driver.worker(), "a")
    assert there.content[DATA] == AFTER, "left as it is unless that is asked for"
    await put_back(driver)
    assert there.content[DATA] == there.content[MORE] == BEFORE
    assert driver.phase() is Phase.RUNNING
    volumes = driver.core.volumes
    assert volumes.holders(volumes.find("", "data")) == {"s1": False}
    told = [h.event.message for h in driver.broadcaster.recent()]
    assert "the sandbox returns to its snapshot a, with data, more" in told
    assert driver.record().reverting_volumes is False
    check_tidy(driver)
    write(driver, AFTER)
    await operations.suspend(driver.worker())
    await put_back(driver)
    assert there.content[MORE] == BEFORE
    check_tidy(driver)
    await driver.manager.stop("s1", "")
    assert volumes.holders(volumes.find("", "data")) == {}


async def test_what_cannot_be_put_back_is_refused_and_left_alone(
    driver: FakeDriver,
) -> None:
    await running(driver, wanting())
    write(driver, BEFORE)
    await take(driver)
    write(driver, AFTER)
    jobs, there = driver.manager.volume_jobs, driver.world.volumes
    await driver.manager.stop("s1", "")
    await running(driver, wanting("s2", read_only=True))
    with pytest.raises(Refused, match="attached to sandbox s2") as caught:
        await put_back(driver)
    assert caught.value.reason == "VolumeInUse"
    await driver.manager.delete("s2", "")
    driver.world.free_bytes = 5
    with pytest.raises(Exhausted, match="snapshot's volumes"):
        await put_back(driver)
    driver.world.free_bytes = 2**40
    await jobs.remove("", "more")
    with pytest.raises(NotFound, match="no volume 'more'") as missing:
        await put_back(driver)
    assert missing.value.reason == "VolumeMissing"
    await jobs.create("", "more", 32)
    with pytest.raises(Refused, match="has 32 MiB, and had 64") as small:
        await put_back(driver)
    assert small.value.reason == "VolumeTooSmall"
    assert driver.phase() is Phase.STOPPED
    assert there.content[DATA] == AFTER
    await jobs.grow("", "more", 128)
    await put_back(driver)
    assert there.content[DATA] == there.content[MORE] == BEFORE


async def test_nobody_gets_a_volume_while_it_is_put_back(driver: FakeDriver) -> None:
    await running(driver, wanting())
    await take(driver)
    await driver.manager.stop("s1", "")
    held: list[dict[str, bool]] = []

    def look(call: str) -> bool:
        if call.startswith(("complete what volume", "put back")):
            volumes = driver.core.volumes
            held.append(volumes.holders(volumes.find("", "data")))
        return False

    driver.world.fail = look
    await put_back(driver)
    assert held == [{"s1": False}] * 4


# --- killed anywhere

STEPS = ("create", "write", "snapshot", "overwrite", "restore")


async def perform(driver: FakeDriver, step: str) -> None:
    try:
        if step == "create":
            await driver.manager.create(wanting(), None)
        elif step in {"write", "overwrite"}:
            write(driver, BEFORE if step == "write" else AFTER)
        elif step == "snapshot":
            await take(driver)
        else:
            await put_back(driver)
    except AlreadyExists:
        pass
    await driver.settled()


async def played(world: World, bomb: Bomb) -> bool:
    at, bomb.at = bomb.at, None
    driver = FakeDriver(world, bomb)

    async def play() -> None:
        for step in STEPS:
            if step == "snapshot":  # what comes before is killed in other tests
                bomb.passed, bomb.at = 0, at
            await perform(driver, step)

    return await played_until_crash(driver, bomb, play)


@pytest.mark.parametrize("kind", [Bomb, BombAtCalls])
async def test_a_crash_anywhere_leaves_all_volumes_or_none(kind: type[Bomb]) -> None:
    world = World()
    bomb = kind(world)
    assert not await played(world, bomb)
    assert world.volumes.content[DATA] == BEFORE
    assert bomb.passed > 30
    for at in range(bomb.passed):
        world = World()
        assert await played(world, kind(world, at)), f"no crash at {at}"
        await check_recovery(world, again=not at % 3)


async def check_recovery(world: World, *, again: bool) -> None:
    """`again`: what was cut off is asked for once more, which takes the longest."""
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    check_tidy(driver)
    there = world.volumes
    if driver.knows():
        taken = bool(driver.record().snapshots)
        assert there.content.get(DATA) == there.content.get(MORE) or not taken
        for entry in driver.record().snapshots:
            assert [there.copies[v.path] for v in entry.volumes] == [BEFORE, BEFORE]
        steps = STEPS[0 if not taken else 2 :]
        for step in steps if again else ():
            await perform(driver, step)
            check_tidy(driver)
        if again:
            assert there.content[DATA] == there.content[MORE] == BEFORE
            assert driver.phase() is Phase.RUNNING
        await driver.manager.delete("s1", "")
    check_tidy(driver)
    assert not any(there.writers.values())
    assert not {path for path in world.files if path.startswith("layers/")}
    await driver.close()


async def test_a_qemu_that_ends_anywhere_leaves_no_copy_behind() -> None:
    world = World()
    killer = Killer(world)
    driver = FakeDriver(world, killer)
    await driver.manager.recover()
    await running(driver, wanting())
    first = killer.passed
    await take(driver)
    last = killer.passed
    await driver.close()
    for at in range(first, last):
        world = World()
        driver = FakeDriver(world, Killer(world, at))
        await driver.manager.recover()
        await running(driver, wanting())
        write(driver, BEFORE)
        with contextlib.suppress(DriverError):
            await take(driver)
        driver.hint()
        await driver.in_phase("s1", Phase.FAILED)
        await driver.settled()
        check_tidy(driver)
        for entry in driver.record().snapshots:
            there = world.volumes.copies
            assert [there[v.path] for v in entry.volumes] == [BEFORE, BEFORE]
        await driver.manager.delete("s1", "")
        assert not {path for path in world.files if path.endswith(".raw")}
        await driver.close()
