"""Works that go on at one time: none is left behind, whatever becomes of another."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from vmdriver.errors import HostError
from vmdriver.host.side_by_side import beside, together


async def fail(words: str) -> None:
    raise HostError(words)


async def test_each_may_wait_for_another() -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def one() -> None:
        first.set()
        await second.wait()

    async def other() -> None:
        await first.wait()
        second.set()

    async with asyncio.timeout(20):
        await together(other(), one())


async def test_an_error_is_raised_when_the_others_have_ended() -> None:
    ended: list[str] = []

    async def slow() -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        ended.append("slow")

    with pytest.raises(HostError, match="first"):
        await together(fail("first"), slow(), fail("second"))
    assert ended == ["slow"]


async def test_what_was_expected_is_raised_before_what_was_not() -> None:
    async def bug() -> None:
        raise ValueError("no element found")

    with pytest.raises(HostError, match="the way out"):
        await together(bug(), fail("the way out"))


async def test_a_cancellation_reaches_all_and_is_raised_before_errors() -> None:
    begun, cancelled = asyncio.Event(), list[str]()

    async def waits(name: str) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    task = asyncio.create_task(together(fail("broken"), waits("a"), waits("b")))
    async with asyncio.timeout(20):
        await begun.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sorted(cancelled) == ["a", "b"]


async def test_what_is_cancelled_before_it_has_begun_leaves_nothing_that_was_never_awaited() -> (
    None
):
    """As when a process ends: every task is cancelled, also one that was made just now."""

    async def nothing() -> None:
        raise AssertionError("it has begun")

    works = [nothing(), nothing()]
    task = asyncio.create_task(beside(*works))
    await asyncio.sleep(0)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert len(others) == 3
    for other in others:
        other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    states = [inspect.getcoroutinestate(work) for work in works]
    assert states == [inspect.CORO_CLOSED] * 2
