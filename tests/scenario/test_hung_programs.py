"""A helper program that does not move (SIGSTOP, a dead file server) holds up no stop and no delete,
whichever it is and whatever it was to do. It is ended when whoever waits for it is cancelled, as
`host.process.run` does.
"""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.limits import limit
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from vmdriver.model.phase import Phase

SLOW = dataclasses.replace(SETTINGS, stop_grace_s=0.3)
BOUND_S = 4.0
"""On a busy machine; what is tried takes a second at most."""
ON_THE_WAY_UP = (
    *("network.taken", "network.own_networks", "network.load_rules"),
    *("images.prepare", "supervisor_disks.disk", "disks.create_overlay"),
)
ON_THE_WAY_BACK = ("network.load_rules",)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, cut_off_s=0.05, undo_s=0.05, stop_s=0.1)


def hang_once(driver: FakeDriver, call: str) -> asyncio.Event:
    """The next such call never ends; set when it has begun."""
    begun = asyncio.Event()
    port, name = call.split(".")
    adapter = getattr(driver.inside.ports, port)
    real = getattr(adapter, name)

    async def hung(*arguments: object) -> None:
        setattr(adapter, name, real)
        begun.set()
        await asyncio.get_running_loop().create_future()

    setattr(adapter, name, hung)
    return begun


async def up_to(call: str, *, resumed: bool) -> FakeDriver:
    driver = FakeDriver(World(), settings=SLOW)
    await driver.manager.recover()
    if resumed:
        await driver.manager.create(spec(driver_config={"on_stop": "suspend"}), None)
        await driver.settled()
        await driver.manager.stop("s1", "")
        assert driver.phase() is Phase.SUSPENDED
    begun = hang_once(driver, call)
    if resumed:
        await driver.manager.start("s1", "")
    else:
        await driver.manager.create(spec(), None)
    async with asyncio.timeout(BOUND_S):
        await begun.wait()
    return driver


WHERE = [(call, False) for call in ON_THE_WAY_UP] + [
    (call, True) for call in ON_THE_WAY_BACK
]


@pytest.mark.parametrize(("call", "resumed"), WHERE)
async def test_a_stop_ends_a_program_that_hangs(call: str, resumed: bool) -> None:
    driver = await up_to(call, resumed=resumed)
    async with asyncio.timeout(BOUND_S):
        await driver.manager.stop("s1", "")
    assert not driver.world.domains
    assert not driver.world.taps
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING, "and it can be started again"
    await driver.close()


@pytest.mark.parametrize(("call", "resumed"), WHERE)
async def test_a_delete_ends_a_program_that_hangs(call: str, resumed: bool) -> None:
    driver = await up_to(call, resumed=resumed)
    async with asyncio.timeout(BOUND_S):
        assert await driver.manager.delete("s1", "")
    assert driver.world.objects() == set()
    assert driver.world.records == {}
    await driver.close()
