"""A machine that an operator pauses while a capture of it is about to freeze its workload stays paused."""

from __future__ import annotations

import pytest

from tests.scenario.stage import operations, running
from vmdriver.errors import DriverError
from vmdriver.model.phase import DomainState


@pytest.mark.parametrize("disk_only", [False, True])
async def test_a_freezing_that_fails_lets_nothing_go_on_that_it_did_not_pause(
    disk_only: bool,
) -> None:
    driver = await running()
    found, worker = operations(driver)
    domain, world = driver.plan().domain, driver.world

    def paused_meanwhile(call: str) -> bool:
        if call != f"freeze {domain}":
            return False
        world.domains[domain] = DomainState.PAUSED
        return True

    world.fail = paused_meanwhile
    with pytest.raises(DriverError):
        await found.create_snapshot(worker, "a", disk_only=disk_only)
    assert world.domains[domain] is DomainState.PAUSED
    assert f"go on {domain}" not in world.calls
    world.fail = lambda _: False
    await driver.manager.delete("s1", "")
    await driver.close()
