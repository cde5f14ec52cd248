"""Calls that hang hold up nobody but themselves."""

from __future__ import annotations

import asyncio
import threading

import pytest

from vmdriver.errors import TimedOut
from vmdriver.host import lanes as lanes_module
from vmdriver.host.lanes import Lanes, Pulse


class Stuck:
    """A blocking call that does not come back until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.go.wait(30)
        return "late"


async def test_twenty_that_hang_cost_another_no_wait() -> None:
    lanes, calls = Lanes("t"), [Stuck() for _ in range(20)]
    waiting = [
        asyncio.create_task(lanes.run(f"m{n}", "look", call, deadline_s=30))
        for n, call in enumerate(calls)
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        assert await lanes.run("other", "look", lambda: 7, deadline_s=1) == 7
    for call in calls:
        call.go.set()
    assert await asyncio.gather(*waiting) == ["late"] * 20


async def test_what_is_late_is_left_behind_and_bars_its_own_lane_only() -> None:
    lanes, call = Lanes("t"), Stuck()
    with pytest.raises(TimedOut, match=r"look: no answer within 0\.05 s"):
        await lanes.run("m", "look", call, deadline_s=0.05)
    with pytest.raises(TimedOut, match="no answer to 'look' yet"):
        await lanes.run("m", "pause", lambda: 1, deadline_s=1)
    assert await lanes.run("m", "end", lambda: 2, deadline_s=1, urgent=True) == 2
    assert await lanes.run("n", "pause", lambda: 3, deadline_s=1) == 3
    assert not await lanes.quiet("m", 0.05)
    call.go.set()
    assert await lanes.quiet("m", 5)
    assert await lanes.run("m", "pause", lambda: 4, deadline_s=1) == 4
    assert not lanes.is_busy("m")


async def test_a_call_that_is_given_up_is_told_and_so_is_whoever_waits() -> None:
    lanes, call, pulse = Lanes("t"), Stuck(), Pulse()
    waiting = asyncio.create_task(
        lanes.run("m", "load", call, deadline_s=30, pulse=pulse)
    )
    while not call.begun.is_set():
        await asyncio.sleep(0.001)
    lanes.abandon("m")
    with pytest.raises(TimedOut, match="given up"):
        await waiting
    assert pulse.given_up
    lanes.abandon("unknown")
    call.go.set()
    assert await lanes.quiet("m", 5)


class Clock:
    """In place of lanes' `time`: it goes on when a test says so, and knows how often whoever
    waits, in the loop's thread, has looked at it.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = threading.Semaphore(0)
        self._loops = threading.get_ident()

    def monotonic(self) -> float:
        if threading.get_ident() == self._loops:
            self.looks.release()
        return self.now

    def pass_(self, seconds: float) -> None:
        """Time passes, and whoever waits sees it."""
        self.now += seconds
        while self.looks.acquire(blocking=False):
            pass
        for _ in range(2):  # the first look may have begun before
            assert self.looks.acquire(timeout=30)


@pytest.mark.parametrize("beats", [0, 15])
async def test_a_deadline_counts_from_the_last_sign_of_life(
    beats: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(lanes_module, "time", clock)
    lanes, pulse, go_on = Lanes("t"), Pulse(), threading.Event()

    def slow() -> str:
        for _ in range(beats):
            clock.pass_(0.04)
            pulse.beat()
        clock.pass_(0.04)
        clock.now += 0.02
        go_on.wait(30)
        return "done"

    begun = clock.now
    with pytest.raises(TimedOut, match=r"write: no answer within 0\.05 s"):
        await lanes.run("m", "write", slow, deadline_s=0.05, pulse=pulse)
    assert clock.now - begun == pytest.approx(beats * 0.04 + 0.06)
    go_on.set()
    assert await lanes.quiet("m", 5)


async def test_a_cancelled_call_is_waited_for_until_it_is_given_up() -> None:
    lanes, call = Lanes("t"), Stuck()
    waiting = asyncio.create_task(lanes.run("m", "load", call, deadline_s=30))
    while not call.begun.is_set():
        await asyncio.sleep(0.001)
    waiting.cancel()
    done, _ = await asyncio.wait({waiting}, timeout=0.05)
    assert not done, "its effect may still come, so whoever books it waits"
    lanes.abandon("m")
    with pytest.raises(asyncio.CancelledError):
        await waiting
    call.go.set()
    assert await lanes.quiet("m", 5)


async def test_errors_are_the_calls_own() -> None:
    with pytest.raises(ZeroDivisionError):
        await Lanes("t").run("m", "divide", lambda: 1 // 0, deadline_s=1)


async def test_a_wait_without_a_thread_is_given_up_with_its_lane() -> None:
    lanes = Lanes("t")
    never = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(lanes.attend("m", "ask", never))
    await asyncio.sleep(0)
    lanes.abandon("m")
    with pytest.raises(TimedOut, match="given up"):
        await waiting
    assert never.cancelled()
    assert not lanes.is_busy("m")
    assert await lanes.attend("m", "ask", asyncio.sleep(0, "yes")) == "yes"
