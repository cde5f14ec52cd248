"""Every scenario must end with no task of ours left; what several share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes.process_driver import ProcessDriver


@pytest.fixture(autouse=True)
async def no_tasks_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    left = [
        t
        for t in asyncio.all_tasks() - before
        if t is not asyncio.current_task() and not t.done()
    ]
    assert not left, f"tasks left over: {left}"


@pytest.fixture
def base(tmp_path: Path) -> Iterator[ProcessDriver]:
    """A driver that is not ours, for a composed one to stand in front of."""
    driver = ProcessDriver(tmp_path / "b" / "b.sock")
    driver.start()
    yield driver
    driver.close()
