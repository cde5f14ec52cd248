"""Programs that the driver runs: whatever they do, whoever waits for them is told in time."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from tests.fakes.limits import limit
from vmdriver.errors import CommandError, Late
from vmdriver.host import process

SOON_S = 20.0
"""What hangs does so for a minute or for ever."""


async def test_who_is_late_with_its_mouth_full_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it says is under way, and read by nobody any more."""
    limit(monkeypatch, most_output=2**40)
    for _ in range(10):
        before = time.monotonic()
        with pytest.raises(Late):
            await process.run(["yes", "a" * 4000], deadline_s=0.1)
        assert time.monotonic() - before < SOON_S


async def test_who_says_too_much_is_ended_wherever_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for most in range(2**17, 2**20, 2**15 + 777):
        limit(monkeypatch, most_output=most)
        with pytest.raises(CommandError, match="said more than"):
            await process.run(["yes", "a" * 4000], deadline_s=SOON_S)


@pytest.mark.parametrize("how", ["late", "cancelled"])
async def test_a_program_that_left_its_group_holds_nobody_up(
    tmp_path: Path, how: str
) -> None:
    """It has what its parent has said words through."""
    told = tmp_path / "pid"
    words = f"setsid sh -c 'echo $$ >{told}.part; mv {told}.part {told}; exec sleep 60' & exec sleep 60"
    running = asyncio.create_task(process.run(["sh", "-c", words], deadline_s=2))
    while not told.exists():
        await asyncio.sleep(0.01)
    before = time.monotonic()
    if how == "cancelled":
        running.cancel()
    try:
        with pytest.raises((Late, asyncio.CancelledError)):
            async with asyncio.timeout(SOON_S):
                await running
        assert time.monotonic() - before < SOON_S
    finally:
        os.kill(int(told.read_text()), 9)


@pytest.mark.parametrize("steps", range(12))
async def test_who_is_cancelled_while_a_program_begins_waits_for_none_of_its_children(
    steps: int, tmp_path: Path
) -> None:
    """They have its pipes, and may live for ever."""
    told = tmp_path / "pid"
    words = f"sleep 60 & echo $! >{told}; sleep 60"
    running = asyncio.ensure_future(process.run(["sh", "-c", words], deadline_s=30))
    for _ in range(steps):
        await asyncio.sleep(0)
    running.cancel()
    before = time.monotonic()
    async with asyncio.timeout(SOON_S):
        await asyncio.wait({running})
    assert running.cancelled()
    assert time.monotonic() - before < SOON_S
    child = told.read_text().strip() if told.exists() else ""
    async with asyncio.timeout(SOON_S):
        while child and _lives(int(child)):
            await asyncio.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
