"""Every scenario must end with no task of ours left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest


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
