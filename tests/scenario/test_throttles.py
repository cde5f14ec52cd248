"""What a machine may ask of the host's disks and network, in all ways in which one comes up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import operations, waiting, with_template
from vmdriver.errors import InvalidRequest
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.phase import Phase

MOST = {"max_disk_iops": 1000, "max_disk_mib_s": 100, "max_net_mbit_s": 50}
LESS = {"max_disk_iops": 200, "max_disk_mib_s": 20, "max_net_mbit_s": 5}
NONE = {"max_disk_iops": None, "max_disk_mib_s": None, "max_net_mbit_s": None}


async def started(asked: dict[str, int], settings: Settings = SETTINGS) -> FakeDriver:
    """s1 runs, asked for with these."""
    driver = FakeDriver(World(), settings=settings)
    await driver.manager.recover()
    await driver.manager.create(spec(driver_config=asked), None)
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    return driver


def limits(driver: FakeDriver, sandbox_id: str = "s1") -> dict[str, int | None]:
    """What is in force on the host, by the settings' names."""
    plan = driver.plan(sandbox_id)
    found = driver.world.limits
    return dict(
        zip(MOST, (*found[plan.domain], *found[plan.network.lease.tap]), strict=True)
    )


@pytest.mark.parametrize(
    ("most", "asked", "given"),
    [
        ({}, {}, NONE),
        ({}, LESS, LESS),
        (MOST, {}, MOST),
        (MOST, LESS, LESS),
        (MOST, MOST, MOST),
        (MOST, {"max_net_mbit_s": 5}, MOST | {"max_net_mbit_s": 5}),
    ],
)
async def test_a_machine_gets_the_lower_one_of_what_operator_and_request_say(
    most: dict[str, int], asked: dict[str, int], given: dict[str, int | None]
) -> None:
    settings = dataclasses.replace(SETTINGS, **most)
    driver = await started(asked, settings)
    assert limits(driver) == given
    await driver.close()


@pytest.mark.parametrize("name", MOST)
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (0, "not within"),
        (-1, "not within"),
        (10**8, "not within"),
        ("9", "whole number"),
        (True, "whole number"),
        (1.5, "whole number"),
    ],
)
async def test_what_is_no_limit_is_refused_by_name(
    name: str, asked: Any, said: str
) -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    for ask in (driver.manager.validate, lambda s: driver.manager.create(s, None)):
        with pytest.raises(InvalidRequest, match=rf"driver_config\.{name}: .*{said}"):
            await ask(spec(driver_config={name: asked}))
    assert not driver.world.records
    await driver.close()


@pytest.mark.parametrize("name", MOST)
async def test_more_than_the_operators_maximum_is_refused_by_name(name: str) -> None:
    driver = FakeDriver(World(), settings=dataclasses.replace(SETTINGS, **MOST))
    await driver.manager.recover()
    above = {name: MOST[name] + 1}
    with pytest.raises(InvalidRequest, match=rf"{name}: .*maximum {MOST[name]}"):
        await driver.manager.create(spec(driver_config=above), None)
    await driver.close()


@pytest.mark.parametrize("warm", [0, 1])
async def test_a_fork_has_its_own_requests_limits_also_where_it_waited(
    warm: int,
) -> None:
    """The template was made of a sandbox that asked for none, and is everybody's."""
    driver = await with_template(warm_pool=warm)
    if warm:
        await waiting(driver, 1)
    await driver.manager.create(spec("second", driver_config=LESS), None)
    await driver.settled()
    assert driver.plan("second").template is not None
    assert limits(driver, "second") == LESS
    await driver.manager.create(spec("third"), None)
    await driver.settled()
    assert driver.plan("third").template is not None
    assert limits(driver, "third") == NONE
    await driver.close()


async def test_one_that_waited_with_just_these_limits_is_not_given_them_once_more() -> (
    None
):
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    before = len(driver.world.calls)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    plan = driver.plan("second")
    given = {f"limit {plan.domain}", f"limit rate {plan.network.lease.tap}"}
    assert plan.template is not None
    assert given.isdisjoint(driver.world.calls[before:])
    assert limits(driver, "second") == NONE
    await driver.close()


async def test_a_template_is_the_same_whatever_its_first_sandbox_asked_for() -> None:
    driver = await with_template(**MOST)
    (template,) = driver.manager.templates.listed()
    plan = template.manifest.plan
    found = (plan.disk_iops, plan.disk_mib_s, plan.network.mbit_s)
    assert found == (None, None, None)
    await driver.close()


async def test_a_waiting_machine_whose_disks_cannot_be_limited_is_booted_anew() -> None:
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    driver.world.fail = lambda made: made.startswith("limit test-")
    await driver.manager.create(spec("second", driver_config=LESS), None)
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    assert driver.world.starts[driver.plan("second").domain] == 1
    assert limits(driver, "second") == LESS
    await driver.close()


async def test_a_waiting_machine_whose_network_cannot_be_limited_is_nobodys() -> None:
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    driver.world.fail = lambda made: made.startswith("limit rate")
    await driver.manager.create(spec("second", driver_config=LESS), None)
    await driver.settled()
    assert driver.phase("second") is Phase.FAILED
    marks = {d: m for d, m in driver.world.marks.items() if d in driver.world.domains}
    assert not [m for m in marks.values() if m.endswith("/second")]
    await driver.close()


async def test_a_machine_that_comes_back_has_the_operators_limits_of_now() -> None:
    driver = await started({"max_disk_iops": 500})
    found, worker = operations(driver)
    await found.suspend(worker)
    world = driver.world
    await driver.close()
    again = FakeDriver(world, settings=dataclasses.replace(SETTINGS, **LESS))
    await again.manager.recover()
    await again.manager.start("s1", "")
    await again.settled()
    assert again.phase() is Phase.RUNNING
    assert world.starts[again.plan().domain] == 1, "it was not booted"
    assert limits(again) == LESS
    await again.close()
