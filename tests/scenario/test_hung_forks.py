"""A new sandbox whose machine comes from a template, or waited for it, hangs on its way up: it is stopped and deleted in
time all the same, and what it took over from nobody is gone with it.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.limits import limit
from tests.scenario.stage import eventually, waiting, with_template
from vmdriver.model.phase import Phase

BOUND_S = 4.0
"""On a busy machine; what is tried takes a second at most."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, cut_off_s=0.05, look_s=0.1, undo_s=0.05, stop_s=0.1)


async def hung(call: str, warm: int) -> FakeDriver:
    """s1 has met what hangs; nobody else does from now on."""
    times = {"stop_grace_s": 0.3, "restore_timeout_s": 60.0, "boot_timeout_s": 60.0}
    driver = await with_template(warm_pool=warm, **times)
    if warm:
        await waiting(driver, warm)
    hanging = driver.world.hanging
    hanging.hangs = lambda it: it.startswith(f"{call} ")
    await driver.manager.create(spec(), None)
    await eventually(lambda: hanging.met, f"nobody got to {call}")
    hanging.hangs = lambda _call: False
    return driver


async def ended(driver: FakeDriver) -> None:
    """Nothing is left but what belongs to the other sandbox and to the template."""
    assert await driver.manager.delete("first", "")
    for template in driver.manager.templates.listed():
        await driver.manager.templates.remove(template.key)
    await driver.close()
    assert driver.world.objects() == set()
    assert driver.world.records == {}


HANGS = [("load", 0), ("go on", 0), ("adopt", 0), ("go on", 1), ("adopt", 1)]


@pytest.mark.parametrize(("call", "warm"), HANGS)
async def test_a_stop_has_it_down_in_time(call: str, warm: int) -> None:
    driver = await hung(call, warm)
    async with asyncio.timeout(BOUND_S):
        await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.STOPPED
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING, "and it can be started again"
    assert await driver.manager.delete("s1", "")
    await ended(driver)


@pytest.mark.parametrize(("call", "warm"), HANGS)
async def test_a_delete_is_done_in_time(call: str, warm: int) -> None:
    driver = await hung(call, warm)
    async with asyncio.timeout(BOUND_S):
        assert await driver.manager.delete("s1", "")
    assert not driver.knows("s1")
    await ended(driver)
