"""How several scenarios begin, and how they wait for what comes of it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.ports.host import Guard, no_crash_point
from vmdriver.model.phase import Phase

TEMPLATES = dataclasses.replace(SETTINGS, templates_enabled=True)
BOUND_S = 10.0
"""For what takes milliseconds here: on a busy machine."""


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until it is so; else the test fails with that."""
    try:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(what) from None


async def running(world: World | None = None, **options: Any) -> FakeDriver:
    """s1 runs; a stop keeps its memory."""
    driver = FakeDriver(world or World(), **options)
    await driver.manager.recover()
    await driver.manager.create(spec(driver_config={"on_stop": "suspend"}), None)
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    return driver


def operations(driver: FakeDriver) -> tuple[Operations, Any]:
    """What an operator can do, and s1 to do it with."""
    found = Operations(driver.manager)
    return found, found.find("s1")


async def ticked(driver: FakeDriver) -> str:
    """The workload of s1 has run for a moment; its domain."""
    domain = driver.plan().domain
    driver.memory.tick(domain)
    return domain


# --- templates


async def with_template(
    crash_point: Guard = no_crash_point, **settings: Any
) -> FakeDriver:
    """`first` runs, and there is a template of its shape."""
    settings = dataclasses.replace(TEMPLATES, **settings)
    driver = FakeDriver(World(), crash_point, settings=settings)
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    await eventually(driver.manager.templates.listed, "no template was built")
    return driver


async def waiting(driver: FakeDriver, count: int) -> None:
    """As many machines wait to be claimed."""
    pool, (template,) = driver.manager.warm_pool, driver.manager.templates.listed()
    await eventually(
        lambda: pool.count(template.key) == count, f"there are not {count} that wait"
    )


def template_files(world: World) -> set[str]:
    """Layers and memory of templates."""
    layers = {path for path in world.files if path.startswith("layers/template-")}
    return layers | {
        path for path in world.checkpoints if path.startswith("templates/")
    }
