"""Machines with IPv6, in all ways in which one comes up: each its own address, or the reason why it has none."""

from __future__ import annotations

import dataclasses

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import running, waiting, with_template
from vmdriver.model.ipv6 import WayToIpv6
from vmdriver.model.phase import Phase

WITH = dataclasses.replace(SETTINGS, egress_ipv6=True)


def given(driver: FakeDriver, sandbox_id: str = "s1") -> str | None:
    """The address that the host lets its guest have, which is that of its plan."""
    network = driver.plan(sandbox_id).network
    found = driver.world.ipv6.get(network.lease.tap)
    assert found == (network.ipv6.guest_ip if network.ipv6 else None)
    return found


async def test_without_the_setting_no_machine_has_any() -> None:
    driver = await running()
    assert given(driver) is None
    assert driver.plan().network.no_ipv6 == ""
    await driver.close()


async def test_a_machine_has_an_address_of_its_own_until_it_is_gone() -> None:
    driver = await running(settings=WITH)
    await driver.manager.create(spec("s2"), None)
    await driver.settled()
    one, other = given(driver), given(driver, "s2")
    assert one
    assert other
    assert one != other
    for name in ("s1", "s2"):
        await driver.manager.delete(name, "")
    await driver.settled()
    assert driver.world.ipv6 == {}
    await driver.close()


async def test_where_the_host_has_none_a_machine_starts_without_and_says_why() -> None:
    world = World(way_to_ipv6=WayToIpv6("this host has no route"))
    driver = await running(world, settings=WITH)
    assert given(driver) is None
    assert driver.plan().network.no_ipv6 == "this host has no route"
    await driver.close()


@pytest.mark.parametrize("pool", [0, 1])
async def test_whoever_goes_on_from_a_template_has_its_own_and_the_template_none(
    pool: int,
) -> None:
    driver = await with_template(egress_ipv6=True, warm_pool=pool)
    if pool:
        await waiting(driver, pool)
    assert list(driver.world.ipv6.values()) == [given(driver, "first")]
    await driver.manager.create(spec("s1"), None)
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert driver.plan().template
    assert given(driver)
    assert given(driver) != given(driver, "first")
    asked = [call for call in driver.world.calls if call.startswith("give IPv6")]
    assert len(asked) == pool, "one that waited is given it by its owner"
    await driver.close()


async def test_one_that_waited_and_cannot_be_given_it_leaves_nothing() -> None:
    driver = await with_template(egress_ipv6=True, warm_pool=1)
    await waiting(driver, 1)
    driver.world.fail = lambda call: call.startswith("give IPv6")
    await driver.manager.create(spec("s1"), None)
    await driver.settled()
    assert driver.phase() in {Phase.RUNNING, Phase.FAILED}
    if driver.phase() is Phase.RUNNING:
        assert given(driver)
    await driver.manager.delete("s1", "")
    await driver.settled()
    driver.world.fail = lambda _: False
    assert "s1" not in str(driver.world.taps)
    await driver.close()


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_machine_that_is_resumed_has_what_the_operator_wants_now(
    wanted: bool,
) -> None:
    driver = await running(settings=WITH)
    before = given(driver)
    await driver.manager.stop("s1", "")
    await driver.settled()
    assert driver.world.ipv6 == {}
    world = driver.world
    await driver.close()
    driver = FakeDriver(world, settings=dataclasses.replace(WITH, egress_ipv6=wanted))
    await driver.manager.recover()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert given(driver) == (before if wanted else None)
    await driver.close()


async def test_one_that_was_suspended_without_has_none_when_it_goes_on() -> None:
    """Its guest knows of no address."""
    driver = await running()
    await driver.manager.stop("s1", "")
    await driver.settled()
    world = driver.world
    await driver.close()
    driver = FakeDriver(world, settings=WITH)
    await driver.manager.recover()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert given(driver) is None
    await driver.close()
