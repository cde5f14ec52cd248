"""One machine's network as it was made, and how it is had again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from vmdriver.errors import NetworkError
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.ports.network_guard import NetworkNews
from vmdriver.network.listener import Heard, Listener
from vmdriver.network.picture import Picture, Scene

_log = logging.getLogger(__name__)
_TRIES = 5
"""For loading what somebody else changes at that moment."""
_FAILURES = 2
"""After which its machine is not to run."""
_STAYS_S, _STAYS_LONG_S = 1.0, 10.0
"""For how long it has to stay as it was restored."""
_OFTEN, _WINDOW_S = 5, 60.0
"""Restored so often within that time, it has to stay so for long."""
_FIRST_S, _MOST_S = 0.2, 5.0
_WORDS = 4

Look = Callable[[Scene], Awaitable[tuple[Picture, frozenset[int]]]]


@dataclass(eq=False)
class Watched:
    """Its part in one network namespace."""

    tap: str
    scene: Scene
    listener: Listener
    look_at: Look
    made: Picture | None = None
    """None: it is being loaded."""
    indexes: frozenset[int] = frozenset()

    def concerns(self, heard: Heard) -> bool:
        """Whether that may be about this."""
        tables, interfaces = self.scene.tables, self.scene.interfaces
        return (
            heard.everything
            or (tables is None and bool(heard.tables))
            or (tables is not None and not tables.isdisjoint(heard.tables))
            or (interfaces is None and bool(heard.interfaces or heard.settings))
            or (interfaces is not None and not interfaces.isdisjoint(heard.interfaces))
            or not self.indexes.isdisjoint(heard.interfaces)
        )

    async def look(self) -> Picture:
        """What there is now. NetworkError."""
        picture, self.indexes = await self.look_at(self.scene)
        return picture

    def changes(self) -> tuple[int, int]:
        """How often its tables were changed, as far as is known, and how often something was said
        that nobody could keep.
        """
        tables, listener = self.scene.tables, self.listener
        listener.hear()
        known = listener.changes
        own = known if tables is None else tables
        return max((known[t] for t in own), default=0), listener.lost

    def in_words(self, differences: Sequence[str]) -> str:
        """What is not as it was made, and who has done that, if it was a table."""
        names = self.scene.tables or self.listener.last
        by = {self.listener.last[t] for t in names if t in self.listener.last}
        told = [d for d in differences if d.startswith("table ")]
        who = f" by {', '.join(sorted(by))}" if told and by else ""
        rest = len(differences) - _WORDS
        more = f" and {rest} more" if rest > 0 else ""
        return f"{'; '.join(differences[:_WORDS])}{more}{who}"


class Kept:
    """`make` has it all made, and changes nothing where all is there: NetworkError."""

    def __init__(
        self,
        tap: str,
        watched: Sequence[Watched],
        make: Callable[[], Awaitable[None]],
        tell: Callable[[NetworkNews], None],
    ) -> None:
        self.watched = watched
        self.broken = ""
        """Why its machine is not to run."""
        self._tap, self._make, self._tell = tap, make, tell
        self._changed = asyncio.Event()
        self._restored: deque[float] = deque(maxlen=_OFTEN)
        self._task: asyncio.Task[None] | None = None

    async def make(self) -> None:
        """Have it made, and know how it is then. NetworkError, also where somebody else changes
        it at the same moment again and again.
        """
        for one in self.watched:
            one.made = None
        for _ in range(_TRIES):
            before = [one.changes() for one in self.watched]
            await self._make()
            pictures = [await one.look() for one in self.watched]
            after = [one.changes() for one in self.watched]
            if all(map(_only_ours, before, after)):
                # Nothing is awaited since the last change was heard.
                for one, picture in zip(self.watched, pictures, strict=True):
                    one.made = picture
                return
        raise NetworkError("somebody else changes its tables at the same moment")

    def restore(self, what: str, failures: int = 0) -> None:
        """In the background; `what` is not as it was made."""
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._restore(what, failures), name=f"network of {self._tap}"
            )

    async def close(self) -> None:
        """Nothing goes on after this."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _restore(self, what: str, failures: int) -> None:
        told = bool(failures)
        while True:
            self._changed.clear()
            why = await self._tried(what)
            if not why:
                if not self.broken and not told:
                    self._tell(self._news(f"{what}; it was restored", restored=True))
                    told = True
                if await self._stays():
                    break
                why = f"{what}; it was restored, and changed again at once"
            failures += 1
            if failures >= _FAILURES and not self.broken:
                self.broken = why
                self._tell(self._news(why, restored=False))
            if self.broken:
                wait_s = backoff_s(
                    failures - _FAILURES, first_s=_FIRST_S, most_s=_MOST_S
                )
                await asyncio.sleep(wait_s)
        if self.broken:
            self.broken = ""
            self._tell(self._news(f"{what}; it is whole again", restored=True))

    async def _tried(self, what: str) -> str:
        """Make it anew. Why that failed, or ""."""
        try:
            await self.make()
        except NetworkError as error:
            return f"{what}, and it could not be restored: {error.text()}"
        except Exception as error:  # noqa: BLE001 - a bug must not leave a machine without its wall
            _log.exception("the network of %s could not be restored", self._tap)
            return f"{what}, and it could not be restored: {type(error).__name__}"
        self._restored.append(time.monotonic())
        return ""

    async def _stays(self) -> bool:
        """Whether it is as it was restored, for long enough."""
        times = self._restored
        often = len(times) == _OFTEN and times[-1] - times[0] < _WINDOW_S
        try:
            async with asyncio.timeout(_STAYS_LONG_S if often else _STAYS_S):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    def _news(self, message: str, *, restored: bool) -> NetworkNews:
        return NetworkNews(self._tap, message, restored)


def _only_ours(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether nobody has changed it between these, but what we have loaded."""
    return after[0] - before[0] <= 1 and before[1] == after[1]
