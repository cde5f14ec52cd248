"""A part of the wall that cannot be had: nothing starts, or what starts shows it."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import running, waiting, with_template
from vmdriver.model.phase import Phase
from vmdriver.model.wall import ISOLATION_UNAVAILABLE

WHOLE = ("uid", "namespace", "box", "seccomp", "limits")
WITHOUT_BOX = ("uid", "namespace", "seccomp", "limits")
AVAILABLE = dataclasses.replace(SETTINGS, isolation="available")


async def test_nothing_starts_without_a_part_and_the_reason_is_told() -> None:
    driver = FakeDriver(World())
    driver.wall.lack("box", "bwrap is not installed")
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert driver.phase() is Phase.FAILED
    assert not driver.world.starts
    failure = driver.record().failure
    assert failure is not None
    for words in (ISOLATION_UNAVAILABLE, "box", "bwrap is not installed", "available"):
        assert words in failure.message
    driver.wall.restore()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert driver.plan().wall == WHOLE
    await driver.close()


async def test_the_operator_can_do_without_and_it_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = FakeDriver(World(), settings=AVAILABLE)
    driver.wall.lack("box", "bwrap is not installed")
    await driver.manager.recover()
    with caplog.at_level(logging.WARNING):
        for sandbox_id in ("s1", "s2"):
            await driver.manager.create(spec(sandbox_id), None)
            await driver.settled()
    assert driver.plan().wall == driver.plan("s2").wall == WITHOUT_BOX
    told = [r for r in caplog.records if "bwrap is not installed" in r.getMessage()]
    assert len(told) == 1, "once, not with every start"
    await driver.close()


async def test_memory_is_kept_while_a_part_cannot_be_had() -> None:
    settings = dataclasses.replace(SETTINGS, restore_retry_s=0.0)
    driver = await running(settings=settings)
    domain = driver.plan().domain
    await driver.manager.stop("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.SUSPENDED
    driver.wall.lack("box", "user namespaces are forbidden")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.FAILED
    assert driver.record().memory is not None
    failure = driver.record().failure
    assert failure is not None
    assert "user namespaces are forbidden" in failure.message
    driver.wall.restore()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert driver.world.starts[domain] == 1, "it was not booted"
    await driver.close()


async def test_a_resumed_machine_has_the_parts_of_now_not_those_of_its_suspension() -> (
    None
):
    driver = await running(settings=AVAILABLE)
    await driver.manager.stop("s1", "")
    await driver.settled()
    driver.wall.lack("box", "bwrap was removed")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert driver.plan().wall == WITHOUT_BOX
    await driver.close()


async def test_a_claimed_machine_has_the_parts_that_it_was_begun_with() -> None:
    driver = await with_template(warm_pool=1, isolation="available")
    await waiting(driver, 1)
    driver.wall.lack("box", "bwrap was removed")
    await driver.manager.create(spec("s2"), None)
    await driver.settled()
    assert driver.plan("s2").domain != driver.plan("first").domain
    assert driver.plan("s2").template
    assert driver.plan("s2").wall == WHOLE
    await driver.manager.stop("s2", "")
    await driver.manager.start("s2", "")
    await driver.settled()
    assert driver.plan("s2").wall == WITHOUT_BOX
    await driver.close()
