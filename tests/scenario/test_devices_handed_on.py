"""Devices between two sandboxes: who was promised one gets it, and who gives one back takes it from no one."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.slow_journal import SlowJournal
from tests.fakes.world import World
from tests.scenario.stage import eventually
from vmdriver.errors import DriverError
from vmdriver.lifecycle.engine.resource import DEVICES
from vmdriver.model.devices import PciFunction
from vmdriver.model.phase import Phase
from vmdriver.model.spec import Resources

GPU, OTHER = "0000:3b:00.0", "0000:af:00.0"
HOST = {
    GPU: PciFunction(GPU, 0x030200, group=7, driver="nvidia", resettable=True),
    OTHER: PciFunction(OTHER, 0x030200, group=8, driver="nvidia", resettable=True),
}
ONE = Resources(gpus=1)


async def begun(world: World, *allowed: str, **options: Any) -> FakeDriver:
    settings = dataclasses.replace(SETTINGS, passthrough_devices=allowed)
    driver = FakeDriver(world, settings=settings, **options)
    await driver.manager.recover()
    return driver


def host() -> World:
    return World(accelerator="kvm", pci=dict(HOST))


async def created(driver: FakeDriver, name: str = "s1") -> None:
    await driver.manager.create(spec(name, resources=ONE), None)
    await driver.settled()


def check_untouched(world: World) -> None:
    """All devices are the host's."""
    assert (world.pci, world.groups) == (HOST, {})


async def refused(driver: FakeDriver, name: str) -> str:
    with pytest.raises(DriverError) as found:
        await driver.manager.create(spec(name, resources=ONE), None)
    return found.value.reason


@pytest.mark.parametrize("named_first", [True, False])
async def test_one_that_is_named_is_not_taken_by_who_wants_any(
    named_first: bool,
) -> None:
    driver = await begun(host(), GPU, OTHER)
    named = spec("named", driver_config={"devices": [GPU]})
    counted = spec("counted", resources=ONE)
    asked = (named, counted) if named_first else (counted, named)
    await asyncio.gather(*(driver.manager.create(one, None) for one in asked))
    await driver.settled()
    for name in ("named", "counted"):
        assert driver.phase(name) is Phase.RUNNING
    assert driver.plan("named").devices == (GPU,)
    await driver.close()


async def test_one_whose_return_is_not_noted_yet_is_nobodys() -> None:
    """A driver that is killed now takes it back once more, whoever had it then."""
    world, notes = host(), dict[str, SlowJournal]()
    driver = await begun(
        world,
        GPU,
        journals=lambda name: notes.setdefault(name, SlowJournal(world, name, DEVICES)),
    )
    await created(driver)
    stopping = asyncio.ensure_future(driver.manager.stop("s1", ""))
    await notes["s1"].reached.wait()
    check_untouched(world)
    assert await refused(driver, "s2") == "NoDeviceFree"
    notes["s1"].go.set()
    await stopping
    await created(driver, "s2")
    assert driver.phase("s2") is Phase.RUNNING
    notes["s2"].go.set()
    await driver.close()


async def test_on_a_full_disk_it_is_nobodys_until_its_last_owner_is_gone() -> None:
    world, notes = host(), dict[str, SlowJournal]()
    driver = await begun(
        world,
        GPU,
        journals=lambda name: notes.setdefault(name, SlowJournal(world, name, DEVICES)),
    )
    await created(driver)
    notes["s1"].full = True
    stopping = asyncio.ensure_future(driver.manager.stop("s1", ""))
    await driver.troubled()
    check_untouched(world)
    assert DEVICES in driver.held()
    assert await refused(driver, "s2") == "NoDeviceFree"
    await driver.manager.delete("s1", "")
    await asyncio.gather(stopping, return_exceptions=True)
    await eventually(lambda: not driver.knows(), "it is not deleted")
    await created(driver, "s2")
    assert driver.phase("s2") is Phase.RUNNING
    notes["s2"].go.set()
    await driver.close()
