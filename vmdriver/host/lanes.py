"""Blocking calls on things of which each may hang: every thing has a lane of its own, so that
one that hangs costs no other a thread or a wait.

A call that is not back by its deadline, or that is given up, is left behind: its thread goes on,
whoever waited is told, and nothing else is begun in that lane until it has ended, but for what
is urgent. Threads are daemons: the process can end while some never will.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from vmdriver.errors import TimedOut
from vmdriver.host.threads import finished

T = TypeVar("T")
_log = logging.getLogger(__name__)
_MOMENT_S = 1.0
"""In which a thread sees that nobody waits for it."""
_MOST_LEFT = 8
"""Calls left behind in one lane, the urgent ones among them."""


class Pulse:
    """How a long call says from its thread that it gets on, and hears that nobody waits."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.given_up = False

    def beat(self) -> None:
        """It gets on."""
        self.at = time.monotonic()


@dataclass(eq=False)
class _Call(Generic[T]):
    what: str
    answer: asyncio.Future[T]
    ended: asyncio.Event
    pulse: Pulse


@dataclass
class _Lane:
    under_way: set[_Call[Any]] = field(default_factory=set)
    left_behind: set[_Call[Any]] = field(default_factory=set)


class Lanes:
    """All lanes of one outside world. "" is the one of calls on nothing in particular."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lanes: dict[str, _Lane] = {}

    async def run(
        self,
        lane: str,
        what: str,
        function: Callable[[], T],
        *,
        deadline_s: float,
        urgent: bool = False,
        pulse: Pulse | None = None,
    ) -> T:
        """The function's result, from a thread of its own. TimedOut when it is not there
        `deadline_s` after the last beat of its pulse, when it was given up, or at once when the
        lane is not free. Cancelled meanwhile, it is waited for as long as without that.
        """
        most = 1 if lane and not urgent else _MOST_LEFT
        call: _Call[T] = self._enter(lane, what, pulse or Pulse(), most)
        self._begin(lane, call, function)
        return await finished(self._answer(lane, call, deadline_s))

    async def read(
        self,
        lane: str,
        what: str,
        function: Callable[[Pulse], T],
        *,
        deadline_s: float,
    ) -> T:
        """The same for what changes nothing, and minds its pulse: cancelled, it is left behind at
        once. What was left behind there has a moment to end before it.
        """
        await self.quiet(lane, _MOMENT_S, left_behind=True)
        pulse = Pulse()
        call: _Call[T] = self._enter(lane, what, pulse, 1)
        self._begin(lane, call, partial(function, pulse))
        try:
            return await self._answer(lane, call, deadline_s)
        except asyncio.CancelledError:
            if not call.ended.is_set():
                call.answer.cancel()
                self._leave(lane, call, "it was given up")
            raise

    def _enter(self, lane: str, what: str, pulse: Pulse, most_left: int) -> _Call[T]:
        line = self._lanes.setdefault(lane, _Lane())
        if len(line.left_behind) >= most_left:
            stuck = next(iter(line.left_behind)).what
            raise TimedOut(f"{what}: there is no answer to {stuck!r} yet")
        answer = asyncio.get_running_loop().create_future()
        call: _Call[T] = _Call(what, answer, asyncio.Event(), pulse)
        line.under_way.add(call)
        return call

    def _begin(self, lane: str, call: _Call[T], function: Callable[[], T]) -> None:
        loop, context = asyncio.get_running_loop(), copy_context()

        def work() -> None:
            try:
                result, error = context.run(function), None
            except BaseException as raised:  # noqa: BLE001 - handed over to whoever waits
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(self._end, lane, call, result, error)
            except RuntimeError:
                return  # the loop is closed: nobody waits for anything any more

        name = f"vmdriver-{self._name}-{lane}"[:60]
        try:
            threading.Thread(target=work, name=name, daemon=True).start()
        except RuntimeError as error:
            why = "the host has no thread for it"
            self._end(lane, call, None, TimedOut(f"{call.what}: {why}"))
            _log.warning("%s: %s", call.what, error)

    def _end(
        self, lane: str, call: _Call[Any], result: Any, error: BaseException | None
    ) -> None:
        line = self._lanes[lane]
        if call in line.left_behind:
            _log.info("%s has ended after all", call.what)
        line.under_way.discard(call)
        line.left_behind.discard(call)
        call.ended.set()
        if not line.under_way and not line.left_behind:
            del self._lanes[lane]
        if call.answer.done():
            return
        if error is None:
            call.answer.set_result(result)
        else:
            call.answer.set_exception(error)

    async def _answer(self, lane: str, call: _Call[T], deadline_s: float) -> T:
        while not call.answer.done():
            left_s = call.pulse.at + deadline_s - time.monotonic()
            if left_s <= 0:
                self._leave(lane, call, f"no answer within {deadline_s:g} s")
                break
            await asyncio.wait({call.answer}, timeout=left_s)
        return call.answer.result()

    def _leave(self, lane: str, call: _Call[Any], why: str) -> None:
        line = self._lanes[lane]
        line.under_way.discard(call)
        line.left_behind.add(call)
        call.pulse.given_up = True
        if not call.answer.done():
            _log.warning("%s: %s; it is left behind", call.what, why)
            call.answer.set_exception(TimedOut(f"{call.what}: {why}"))

    async def attend(self, lane: str, what: str, work: Awaitable[T]) -> T:
        """Wait for something that needs no thread; it can be given up with the lane's calls."""
        line = self._lanes.setdefault(lane, _Lane())
        task = asyncio.ensure_future(work)
        call: _Call[Any] = _Call(
            what, asyncio.get_running_loop().create_future(), asyncio.Event(), Pulse()
        )
        line.under_way.add(call)
        try:
            await asyncio.wait({task, call.answer}, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else call.answer.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            self._end(lane, call, None, None)

    def abandon(self, lane: str) -> None:
        """Nobody waits any longer for what is under way there."""
        line = self._lanes.get(lane)
        for call in list(line.under_way) if line else ():
            self._leave(lane, call, "it was given up")

    async def quiet(
        self, lane: str, timeout_s: float, *, left_behind: bool = False
    ) -> bool:
        """Whether everything that was begun there has ended, by then at the latest. Or only what
        was `left_behind` there.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while (line := self._lanes.get(lane)) is not None:
                    others = set() if left_behind else line.under_way
                    calls = line.left_behind | others
                    if not calls:
                        return True
                    for call in calls:
                        await call.ended.wait()
        except TimeoutError:
            return False
        return True

    def is_busy(self, lane: str) -> bool:
        """Whether something that was begun there has not ended."""
        return lane in self._lanes
