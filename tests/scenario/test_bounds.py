"""Whatever hangs: a stop stops, a delete deletes, in time. Times are a tenth of the real ones, or
less; what hangs would do so for ever, or longer than any bound here.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.limits import limit
from tests.fakes.settings import SETTINGS
from tests.fakes.world import Crash, World
from vmdriver.errors import DriverError, StorageError, TimedOut
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.engine.broadcast import Deleted, Notice
from vmdriver.lifecycle.engine.resource import WRITTEN
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.plan import Disk, MachineUser

GRACE_S = 0.3
STOP_S = GRACE_S + 4
"""On a busy machine; what is tried takes a second at most."""
DELETE_S = 4.0
SLOW = dataclasses.replace(
    SETTINGS,
    stop_grace_s=GRACE_S,
    freeze_timeout_s=60,
    restore_timeout_s=60,
    boot_timeout_s=60,
)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, cut_off_s=0.05, look_s=0.1, stop_s=0.1)


def in_background(work: object) -> asyncio.Task[None]:
    async def tried() -> None:
        with suppress(DriverError):
            await work  # type: ignore[misc]

    return asyncio.create_task(tried())


async def hung(what: str, mode: str) -> tuple[FakeDriver, list[asyncio.Task[None]]]:
    """A driver whose sandbox has met what hangs."""
    world = World()
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    found = Operations(driver.manager)
    made = spec(driver_config={"on_stop": mode})

    def hang() -> None:
        world.hanging.hangs = lambda call: (
            call.startswith(f"{what} ")
            or (what == "everything" and not call.startswith("look "))
        )

    if what == "start":
        hang()
        await driver.manager.create(made, None)
    else:
        await driver.manager.create(made, None)
        await driver.settled()
    worker = found.find("s1")
    tasks: list[asyncio.Task[None]] = []
    if what in {"load", "renew", "go on"}:
        await found.suspend(worker)
        hang()
        await driver.manager.start("s1", "")
    elif what in {"freeze", "pause", "capture"}:
        hang()
        tasks.append(in_background(found.suspend(worker)))
    elif what in {"switch", "thaw"}:
        hang()
        tasks.append(in_background(found.create_snapshot(worker, "a", disk_only=True)))
    else:
        hang()
    async with asyncio.timeout(5):
        later = {"flush", "look at", "everything"}
        while what not in later and not world.hanging.met:
            await asyncio.sleep(0.001)
    return driver, tasks


WHAT = (
    *("start", "load", "go on", "renew", "freeze", "pause", "capture"),
    *("switch", "thaw", "flush", "look at", "everything"),
)


@pytest.mark.parametrize("mode", ["shutdown", "suspend"])
@pytest.mark.parametrize("what", WHAT)
async def test_a_stop_has_the_machine_down_in_time(what: str, mode: str) -> None:
    driver, tasks = await hung(what, mode)
    async with asyncio.timeout(STOP_S):
        await driver.manager.stop("s1", "")
    world = driver.world
    assert not world.domains
    assert not world.frozen
    assert driver.phase() in {Phase.STOPPED, Phase.SUSPENDED}
    await asyncio.gather(*tasks)
    world.hanging.hangs = lambda _call: False
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING, "and it can be started again"
    await driver.close()


async def test_a_stop_waits_for_no_memory_that_was_only_to_be_written() -> None:
    """Its intent is noted with that of freezing, at which the driver before was killed."""
    world = World()

    async def at_freezing(point: str) -> None:
        if world.dead or point == "capture:frozen:after-intent":
            world.dead = True
            raise Crash(point)

    driver = FakeDriver(world, at_freezing, settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(driver_config={"on_stop": "suspend"}), None)
    await driver.settled()
    found = Operations(driver.manager)
    keep = found.create_snapshot(found.find("s1"), "a", disk_only=False)
    keeping = in_background(keep)
    async with asyncio.timeout(5):
        while not world.dead:
            await asyncio.sleep(0.001)
    await driver.kill()
    await asyncio.wait({keeping})
    world.hanging.hangs = lambda call: call.startswith("go on ")
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    async with asyncio.timeout(5):
        while not world.hanging.met:
            await asyncio.sleep(0.001)
    assert WRITTEN in driver.held()
    (domain,) = world.domains
    stopping = in_background(driver.manager.stop("s1", ""))
    async with asyncio.timeout(STOP_S):
        while world.domains:
            await asyncio.sleep(0.001)
    world.hanging.hangs = lambda _call: False
    world.hanging.give_up(domain)
    driver.hint()
    await stopping
    assert driver.phase() is Phase.STOPPED
    await driver.close()


@pytest.mark.parametrize("what", WHAT)
async def test_a_delete_is_done_in_time(what: str) -> None:
    driver, tasks = await hung(what, "shutdown")
    async with asyncio.timeout(DELETE_S):
        assert await driver.manager.delete("s1", "")
        await asyncio.gather(*tasks)
    assert not driver.sandboxes()
    assert driver.world.objects() == set()
    assert driver.world.records == {}
    await driver.close()


@pytest.mark.parametrize("wish", ["stop", "delete", "start"])
async def test_nobody_waits_for_a_merge(wish: str) -> None:
    driver = FakeDriver(World(), settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    found = Operations(driver.manager)
    worker = found.find("s1")
    await found.create_snapshot(worker, "a", disk_only=True)
    await found.delete_snapshot(worker, "a")
    disks, merging = driver.inside.ports.disks, asyncio.Event()
    real = disks.merge_layer

    async def stuck(_disk: Disk, _user: MachineUser | None) -> None:
        merging.set()
        await asyncio.get_running_loop().create_future()

    disks.merge_layer = stuck  # type: ignore[method-assign]
    async with asyncio.timeout(STOP_S):
        await driver.manager.stop("s1", "")
        await merging.wait()
    async with asyncio.timeout(DELETE_S):
        if wish == "delete":
            await driver.manager.delete("s1", "")
            assert driver.world.objects() == set()
        elif wish == "start":
            await driver.manager.start("s1", "")
            await driver.in_phase("s1", Phase.RUNNING)
            assert len(worker.sandbox.record.layers) == 2
        else:
            await driver.manager.stop("s1", "")
    disks.merge_layer = real  # type: ignore[method-assign]
    if wish == "start":
        await driver.manager.stop("s1", "")
        async with asyncio.timeout(5):
            while len(worker.sandbox.record.layers) > 1:
                await asyncio.sleep(0.001)
    await driver.close()


async def test_a_guest_that_never_reports_can_be_stopped_at_once() -> None:
    world = World()
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    world.reports = Silent()
    await driver.manager.create(spec(), None)
    async with asyncio.timeout(5):
        while not world.domains or driver.phase() is not Phase.LAUNCHING:
            await asyncio.sleep(0.001)
    async with asyncio.timeout(STOP_S):
        await driver.manager.stop("s1", "")
    assert not world.domains
    await driver.close()


class Silent(dict[str, GuestReport]):
    """No guest says anything."""

    def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
        return GuestReport()


STORING = {"save record", "append to journal", "rewrite journal"}


def full_disk(call: str) -> bool:
    if call in STORING:
        raise StorageError("no space left", reason="DiskFull")
    return False


async def test_a_stop_needs_no_room_on_the_disk() -> None:
    """The wish is stored, and from then on nothing can be."""
    world = World()
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    saved: list[str] = []

    def after_one(call: str) -> bool:
        if call in STORING and (saved or call != "save record"):
            full_disk(call)
        saved.append(call) if call in STORING else None
        return False

    world.fail = after_one
    stopping = in_background(driver.manager.stop("s1", ""))
    async with asyncio.timeout(STOP_S):
        while world.domains or world.taps:
            await asyncio.sleep(0.001)
    world.fail = lambda _call: False
    driver.hint()
    await stopping
    assert driver.phase() is Phase.STOPPED
    await driver.close()


async def test_a_full_disk_can_be_emptied_by_a_delete() -> None:
    world = World()
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    world.fail = full_disk
    async with asyncio.timeout(DELETE_S):
        assert await driver.manager.delete("s1", "") is True
    assert world.objects() == set()
    assert world.records == {}
    await driver.close()


async def test_what_cannot_be_stored_nor_done_is_not_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(monkeypatch, delete_s=0.2)
    world = World()
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    world.fail = lambda call: full_disk(call) or call.startswith("destroy")
    with pytest.raises(StorageError, match="cannot be stored"):
        await driver.manager.delete("s1", "")
    world.fail = lambda call: call.startswith("destroy")
    driver.hint()
    assert await driver.manager.delete("s1", "") is True, "now it is a promise"
    assert '"intent":"deleted"' in world.records["s1"]
    world.fail = lambda _call: False
    driver.hint()
    async with asyncio.timeout(5):
        while driver.sandboxes():
            await asyncio.sleep(0.001)
    await driver.close()


@pytest.mark.parametrize("later", ["restart", "start", "stop", "failure"])
async def test_a_promised_delete_outlives_what_comes_after_it(
    later: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(monkeypatch, delete_s=0.05)
    world = World()
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    world.fail = lambda call: call.startswith("remove tap")
    assert await driver.manager.delete("s1", "") is True, "it is a promise"
    if later == "restart":
        await driver.kill()
        driver = FakeDriver(world, settings=SLOW)
        await driver.manager.recover()
    watcher = driver.broadcaster.subscribe()
    if later in {"start", "stop"}:
        with pytest.raises(DriverError):
            await getattr(driver.manager, later)("s1", "")
    elif later == "failure":
        world.fail = lambda _call: True
        await asyncio.sleep(0.05)
    assert driver.record().intent is Intent.DELETED
    async with asyncio.timeout(5):
        await driver.troubled()
    world.fail = lambda _call: False
    driver.hint()
    seen = await until_deleted(watcher.next)
    assert [n for n in seen if isinstance(n, Deleted)] == [Deleted("s1")]
    assert world.objects() == set()
    await driver.close()


async def until_deleted(following: Callable[[], object]) -> list[Notice]:
    seen: list[Notice] = []
    async with asyncio.timeout(5):
        while not (seen and isinstance(seen[-1], Deleted)):
            seen.append(await following())  # type: ignore[misc]
    return seen


async def test_nobody_is_told_of_a_delete_before_nothing_is_left() -> None:
    world = World()
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    left: list[object] = []
    publish = driver.broadcaster.publish

    def looked(notice: Notice) -> None:
        if isinstance(notice, Deleted):
            left.append((world.objects(), dict(world.records), dict(world.journals)))
        publish(notice)

    driver.broadcaster.publish = looked  # type: ignore[method-assign]
    world.hanging.hangs = lambda _call: True
    await driver.manager.delete("s1", "")
    assert left == [(set(), {}, {})]
    await driver.close()


async def test_a_watcher_that_comes_back_too_late_is_told_of_the_delete() -> None:
    """A gateway waits for the event; its stream may have broken just then."""
    driver = FakeDriver(World(), settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    watcher = driver.broadcaster.subscribe()
    driver.broadcaster.unsubscribe(watcher)
    await driver.manager.delete("s1", "")
    again = driver.broadcaster.subscribe()
    assert await again.next() == Deleted("s1")
    await driver.manager.create(spec(), None)
    await driver.settled()
    third = driver.broadcaster.subscribe()
    first = await third.next()
    assert not isinstance(first, Deleted), "it is there again"
    await driver.close()


@pytest.mark.parametrize("where", ["record:before-remove", "record:after-remove"])
async def test_a_driver_killed_at_the_end_of_a_delete_leaves_the_event_to_the_next(
    where: str,
) -> None:
    """A gateway that has heard `true` waits for it."""
    world, killed = World(), asyncio.Event()

    async def kill(crash_point: str) -> None:
        if crash_point == where:
            world.dead = True
            killed.set()
            raise Crash(crash_point)

    driver = FakeDriver(world, kill, settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    deleting = in_background(driver.manager.delete("s1", ""))
    async with asyncio.timeout(5):
        await killed.wait()
    await driver.kill()
    deleting.cancel()
    await asyncio.wait({deleting})
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    seen = await until_deleted(driver.broadcaster.subscribe().next)
    assert seen[-1] == Deleted("s1")
    await driver.manager.create(spec(), None)
    await driver.settled()
    await driver.kill()
    driver = FakeDriver(world, settings=SLOW)
    await driver.manager.recover()
    first = await driver.broadcaster.subscribe().next()
    assert not isinstance(first, Deleted), "it is there again"
    await driver.close()


async def test_an_endless_wait_is_an_error_not_a_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host that does not let go of a machine at all."""
    limit(monkeypatch, stop_slack_s=0.2)
    world = World()
    settings = dataclasses.replace(SLOW, freeze_timeout_s=0.1)
    driver = FakeDriver(world, settings=settings)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    world.fail = lambda call: call.startswith("destroy")
    with pytest.raises(TimedOut, match="on purpose"):
        await driver.manager.stop("s1", "")
    world.fail = lambda _call: False
    driver.hint()
    await driver.settled()
    assert driver.phase() is Phase.STOPPED
    await driver.close()


async def test_a_stop_that_is_only_repeated_cuts_off_nothing() -> None:
    """A gateway says it to all at its end; an operator's job on a stopped sandbox goes on."""
    driver = FakeDriver(World(), settings=SLOW)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    await driver.manager.stop("s1", "")
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def job(_machine: object) -> None:
        begun.set()
        await go_on.wait()

    working = asyncio.create_task(driver.inside.perform("s1", job))
    await begun.wait()
    await driver.manager.stop("s1", "")
    go_on.set()
    await working
    await driver.close()
