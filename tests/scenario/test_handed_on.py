"""Addresses and users between two sandboxes: nobody is given one that a ledger still says is another's."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from tests.fakes.driver import UIDS, FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.slow_journal import SlowJournal
from tests.fakes.world import World
from tests.scenario.stage import eventually
from vmdriver.errors import StorageError
from vmdriver.lifecycle.engine.resource import LEASE, MACHINE_USER
from vmdriver.model.machine_uids import MachineUids
from vmdriver.model.phase import Phase

ONE_ADDRESS, ONE_USER = "10.0.128.0/30", MachineUids(250000, 250002)
FEW = pytest.mark.parametrize(
    ("key", "reason"),
    [(LEASE, "AddressPoolExhausted"), (MACHINE_USER, "MachineUidsExhausted")],
)
"""There is one for all: who has none fails for that reason."""
Notes = dict[str, SlowJournal]


def options(key: str) -> dict[str, Any]:
    few = dataclasses.replace(SETTINGS, address_pool=ONE_ADDRESS)
    return {
        "settings": few if key == LEASE else SETTINGS,
        "uids": ONE_USER if key == MACHINE_USER else UIDS,
    }


async def begun(world: World, key: str) -> tuple[FakeDriver, Notes]:
    """s1 runs, and has the only one."""
    notes: Notes = {}

    def journal(name: str) -> SlowJournal:
        return notes.setdefault(name, SlowJournal(world, name, key))

    driver = FakeDriver(world, journals=journal, **options(key))
    await driver.manager.recover()
    await created(driver, "s1")
    assert driver.phase("s1") is Phase.RUNNING
    return driver, notes


async def created(driver: FakeDriver, name: str) -> None:
    """It has come up, or has failed."""
    await driver.manager.create(spec(name), None)
    ended = {Phase.RUNNING, Phase.FAILED}
    await driver.until(name, lambda record: record.phase in ended)


def full(call: str) -> bool:
    """Of a World: no record can be stored."""
    if call == "save record":
        raise StorageError("no space left", reason="DiskFull")
    return False


def check_refused(driver: FakeDriver, reason: str) -> None:
    assert driver.phase("s2") is Phase.FAILED, "it has what is another's"
    assert reason in driver.failure("s2").message


@FEW
async def test_a_delete_that_could_not_be_stored_and_is_cut_off_leaves_both_readable(
    key: str, reason: str
) -> None:
    """The next driver finds two that are to run; it must know of each what is its own."""
    world = World()
    driver, notes = await begun(world, key)
    world.fail = full
    deleting = asyncio.ensure_future(driver.manager.delete("s1", ""))
    await eventually(notes["s1"].reached.is_set, "nothing of it is given back")
    world.fail = lambda _: False
    await created(driver, "s2")
    check_refused(driver, reason)
    world.dead = True  # whoever waits for a disk comes to nothing
    notes["s1"].go.set()
    await driver.kill()
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)
    again = FakeDriver(world, **options(key))
    await again.manager.recover()
    assert set(again.sandboxes()) == {"s1", "s2"}, "one is set aside"
    await again.settled()
    await again.manager.delete("s1", "")
    await again.manager.start("s2", "")
    await again.settled()
    assert again.phase("s2") is Phase.RUNNING
    await again.close()


@FEW
async def test_what_is_given_back_once_more_is_nobody_elses_by_then(
    key: str, reason: str
) -> None:
    world = World()
    driver, notes = await begun(world, key)
    lease = driver.plan("s1").network.lease
    notes["s1"].full = True
    world.fail = lambda call: call == f"remove rules {lease.tap}"
    deleting = asyncio.ensure_future(driver.manager.delete("s1", ""))
    await driver.troubled("s1")
    await created(driver, "s2")
    once_more = f"reset connections with {lease.guest_ip}"
    before = world.calls.count(once_more)
    await eventually(
        lambda: world.calls.count(once_more) > before, "it is not tried again"
    )
    check_refused(driver, reason)
    world.fail = lambda _: False
    notes["s1"].go.set()
    await deleting
    assert not driver.knows("s1")
    await driver.manager.start("s2", "")
    await driver.settled()
    assert driver.phase("s2") is Phase.RUNNING
    notes["s2"].go.set()
    await driver.close()


@FEW
async def test_what_was_never_noted_as_given_back_is_free_when_its_owner_is_gone(
    key: str, reason: str
) -> None:
    driver, notes = await begun(World(), key)
    notes["s1"].full = True
    await driver.manager.delete("s1", "")
    assert not driver.knows("s1")
    assert notes["s1"].reached.is_set(), "it was noted"
    await created(driver, "s2")
    assert driver.phase("s2") is Phase.RUNNING
    notes["s2"].go.set()
    await driver.close()
