"""An extension whose parameters have changed since a sandbox was created: what the request said then is no part of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from vmdriver.extension import Extension
from vmdriver.model.phase import Phase

LOG: list[tuple[str, str]] = []


class Before(BaseModel):
    size: str


class Now(BaseModel):
    model_config = ConfigDict(extra="forbid")
    colour: str


class Checks(Extension):
    """Looks at requests; has no part in runs, but is told of the end."""

    name = "checks"

    def __init__(self, parameters: type[BaseModel]) -> None:
        self.parameters = parameters  # type: ignore[misc]

    async def validate_request(self, context: Any) -> None:
        LOG.append(("validate_request", context.parameters.size))

    async def after_delete(self, context: Any) -> None:
        LOG.append(("after_delete", context.parameters.size))


async def changed(world: World, *, running: bool) -> FakeDriver:
    def driver(parameters: type[BaseModel]) -> FakeDriver:
        return FakeDriver(
            world,
            extensions=[Checks(parameters)],
            may_configure=frozenset({"checks"}),
        )

    LOG.clear()
    first = driver(Before)
    await first.manager.recover()
    block = {"checks": {"size": "large"}}
    labels = {"x-vmdriver-checks": "true"}
    request = spec(driver_config={"extensions": block}, labels=labels)
    await first.manager.create(request, None)
    await first.settled()
    if not running:
        await first.manager.stop("s1", "")
    assert LOG == [("validate_request", "large")]
    await first.close()
    second = driver(Now)
    await second.manager.recover()
    await second.settled()
    return second


@pytest.mark.parametrize("running", [True, False])
async def test_it_does_not_keep_a_sandbox_from_being_deleted(running: bool) -> None:
    world = World()
    driver = await changed(world, running=running)
    try:
        async with asyncio.timeout(5):
            assert await driver.manager.delete("s1", "")
        assert not driver.knows()
        assert not world.objects()
    finally:
        await driver.close()


async def test_it_does_not_keep_a_sandbox_from_being_stopped_and_started() -> None:
    driver = await changed(World(), running=True)
    try:
        await driver.manager.stop("s1", "")
        assert driver.phase() is Phase.STOPPED
        await driver.manager.start("s1", "")
        await driver.settled()
        assert driver.phase() is Phase.RUNNING
    finally:
        await driver.close()
