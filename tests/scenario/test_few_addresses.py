"""Where there are few blocks of addresses: machines of no sandbox take none that a sandbox needs."""

from __future__ import annotations

import asyncio
import dataclasses

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES, eventually
from vmdriver.lifecycle.ports.memory import Captured
from vmdriver.model.phase import Phase
from vmdriver.model.spec import Resources

FOUR = "10.0.128.0/28"
OTHER = Resources(memory_mib=512)
"""Of a shape for which no machine waits."""


async def few(warm_pool: int) -> FakeDriver:
    settings = dataclasses.replace(TEMPLATES, address_pool=FOUR, warm_pool=warm_pool)
    driver = FakeDriver(World(), settings=settings)
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    return driver


async def check_that_three_more_run(driver: FakeDriver) -> None:
    """With `first` these are four; there is nothing for a fifth."""
    for name in ("second", "third", "fourth"):
        await driver.manager.create(spec(name, resources=OTHER), None)
        await driver.settled()
        assert driver.phase(name) is Phase.RUNNING, driver.record(name).failure
    await driver.manager.create(spec("fifth", resources=OTHER), None)
    await driver.settled()
    failure = driver.record("fifth").failure
    assert failure is not None
    assert "AddressPoolExhausted" in failure.message
    assert driver.inside.waiting() == []
    tables = set(driver.world.tables)
    assert tables == {driver.plan(n).network.lease.tap for n in NAMES}


NAMES = ("first", "second", "third", "fourth")


async def test_machines_that_wait_give_way_to_sandboxes_and_leave_the_last_block() -> (
    None
):
    driver = await few(9)
    await eventually(lambda: len(driver.inside.waiting()) == 2, "there are not two")
    await driver.settled()
    assert len(driver.inside.leases()) == 3
    await check_that_three_more_run(driver)
    await driver.close()


async def test_a_template_that_is_being_built_gives_way_to_sandboxes() -> None:
    driver = FakeDriver(
        World(), settings=dataclasses.replace(TEMPLATES, address_pool=FOUR)
    )
    begun = asyncio.Event()

    async def hangs(*_: object) -> Captured:
        begun.set()
        return await asyncio.Future[Captured]()

    driver.memory.capture = hangs  # type: ignore[assignment,method-assign]
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    await asyncio.wait_for(begun.wait(), 5)
    assert len(driver.inside.leases()) == 2
    await check_that_three_more_run(driver)
    await driver.close()
