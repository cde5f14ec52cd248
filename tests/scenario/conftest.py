"""Every scenario must end with no task of ours left; what several share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.world import World


def _is_a_call_of_grpcs(task: asyncio.Task[Any]) -> bool:
    return getattr(task.get_coro(), "__qualname__", "").startswith("_AioCall.")


@pytest.fixture(autouse=True)
async def no_tasks_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    begun = asyncio.all_tasks() - before - {asyncio.current_task()}
    if grpcs := {t for t in begun if _is_a_call_of_grpcs(t)}:
        # They end with their call, on a busy machine some turns later.
        await asyncio.wait(grpcs, timeout=5)
    left = [t for t in begun if not t.done()]
    assert not left, f"tasks left over: {left}"


@pytest.fixture
def base(tmp_path: Path) -> Iterator[ProcessDriver]:
    """A driver that is not ours, for a composed one to stand in front of."""
    driver = ProcessDriver(tmp_path / "b" / "b.sock")
    driver.start()
    yield driver
    driver.close()


@pytest.fixture
async def driver() -> AsyncIterator[FakeDriver]:
    """With an empty host."""
    driver = FakeDriver(World())
    await driver.manager.recover()
    yield driver
    await driver.close()
