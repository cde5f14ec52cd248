"""One machine's network as it was made, and how it is had again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from vmdriver.errors import NetworkError
from vmdriver.host.retry import backoff_s, tried
from vmdriver.host.side_by_side import together
from vmdriver.lifecycle.ports.network_guard import NetworkNews
from vmdriver.network.guard.listener import Heard, Listener
from vmdriver.network.guard.picture import Picture, Scene, differences

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
_SOON_S, _LONG_S = 1.0, 4.0
"""What is not restored by then is shut meanwhile; what is not so long after that, is broken."""
_WORDS = 4

Look = Callable[[Scene], Awaitable[tuple[Picture, frozenset[int]]]]
Make = Callable[[Sequence["Watched"], bool], Awaitable[None]]
"""Have these parts of it made; whether their links are to be mended too. NetworkError."""


@dataclass(eq=False)
class Watched:
    """Its part in one network namespace. What is left of an earlier look is `known`."""

    tap: str
    namespace: str | None
    """None: the host's own."""
    scene: Scene
    listener: Listener
    look_at: Look
    made: Picture | None = None
    """None: it is being made."""
    known: Picture | None = None
    """As `made`, also while it is made anew."""
    indexes: frozenset[int] = frozenset()
    unseen: int = 0
    """How often in succession it could not be looked at."""

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
        self.unseen = 0
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
    """`shut` has nothing come or go until it is made anew."""

    def __init__(
        self,
        tap: str,
        parts: Sequence[Watched],
        *,
        make: Make,
        shut: Callable[[], Awaitable[None]],
        tell: Callable[[NetworkNews], None],
    ) -> None:
        self.parts = parts
        self.broken = ""
        """Why its machine is not to run."""
        self._tap, self._make, self._shut, self._tell = tap, make, shut, tell
        self._alone = asyncio.Lock()
        self._changed = asyncio.Event()
        self._due: set[Watched] = set()
        self._mend = False
        self._what = ""
        self._restored: deque[float] = deque(maxlen=_OFTEN)
        self._task: asyncio.Task[None] | None = None

    async def make(self, parts: Sequence[Watched], *, mend: bool) -> None:
        """Have them made, and know how they are then. NetworkError, also where somebody else
        changes them at that moment again and again, or more than the rules is not as it was.
        """
        async with self._alone:
            await self._make_alone(parts, mend)

    async def _make_alone(self, parts: Sequence[Watched], mend: bool) -> None:
        for one in parts:
            one.made = None
        for _ in range(_TRIES):
            before = [one.changes() for one in parts]
            await self._make(parts, mend)
            pictures: dict[Watched, Picture] = {}
            await together(*(_see(one, pictures) for one in parts))
            after = [one.changes() for one in parts]
            if all(map(_only_ours, before, after)):
                break
        else:
            raise NetworkError("somebody else changes its tables at the same moment")
        # Nothing is awaited since the last change was heard.
        for one, picture in pictures.items():
            if one.known is not None:
                _check_links(one.known, picture)
            one.made = one.known = picture

    def restore(self, part: Watched, words: Sequence[str]) -> None:
        """In the background: it is not as it was made."""
        mend = any(not word.startswith("table ") for word in words)
        self.begin(part.in_words(words), [part], mend=mend)

    def begin(
        self, what: str, parts: Sequence[Watched], *, mend: bool, failures: int = 0
    ) -> None:
        """The same; `failures`: so often it was tried already."""
        self._due.update(parts)
        self._mend |= mend
        self._what = what
        self._changed.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(
                self._restore(what, failures), name=f"network of {self._tap}"
            )

    def renew(self, parts: Sequence[Watched]) -> bool:
        """In the background, and without a word: what their rules are made of has changed. False:
        it is being restored, and is to be asked for later.
        """
        if self._task is not None and not self._task.done():
            return False
        name = f"rules of {self._tap}"
        self._task = asyncio.create_task(self._renew(parts), name=name)
        return True

    async def _renew(self, parts: Sequence[Watched]) -> None:
        why = await self._tried_anew(parts)
        if why:
            await self._restore(why, 1)
        elif self._due:
            await self._restore(self._what, 0)

    async def _tried_anew(self, parts: Sequence[Watched]) -> str:
        try:
            await self.make(parts, mend=False)
        except Exception as error:  # noqa: BLE001 - as in `_tried`
            self._due.update(parts)
            self._mend = True
            return f"its rules could not be loaded ({self._said(error)})"
        return ""

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
            if failures >= _FAILURES:
                await self._break(why)
                wait_s = backoff_s(
                    failures - _FAILURES, first_s=_FIRST_S, most_s=_MOST_S
                )
                await asyncio.sleep(wait_s)
        if self.broken:
            self.broken = ""
            self._tell(self._news(f"{what}; it is whole again", restored=True))

    async def _break(self, why: str) -> None:
        """Its traffic ends now, its machine when its worker comes to it."""
        if not self.broken:
            self.broken = why
            self._tell(self._news(why, restored=False))
        self._mend = True  # what is shut is opened by mending
        self._due.update(self.parts)
        await tried(_log, self._shut(), f"shut the network of {self._tap}")

    async def _tried(self, what: str) -> str:
        """Make anew what is due. Why that failed, or ""."""
        due, self._due = [part for part in self.parts if part in self._due], set()
        mend, self._mend = self._mend, False
        try:
            await self._made_soon(what, due, mend)
        except Exception as error:  # noqa: BLE001 - a bug must not leave a machine without its wall
            self._due.update(due)
            self._mend |= mend
            return f"{what}, and it could not be restored: {self._said(error)}"
        self._restored.append(time.monotonic())
        return ""

    async def _made_soon(self, what: str, parts: Sequence[Watched], mend: bool) -> None:
        """Have them made. NetworkError. What helps with it may hang: nothing comes or goes then."""
        making = asyncio.create_task(self.make(parts, mend=mend))
        try:
            await asyncio.wait({making}, timeout=_SOON_S)
            if not making.done():
                await tried(_log, self._shut(), f"shut the network of {self._tap}")
                await asyncio.wait({making}, timeout=_LONG_S)
                if not making.done():
                    await self._break(f"{what}, and it takes long to restore it")
                with contextlib.suppress(NetworkError):  # it may be that we shut it
                    await making
                making = asyncio.create_task(self.make(self.parts, mend=True))
            await making
        finally:
            making.cancel()
            await asyncio.wait({making})

    def _said(self, error: Exception) -> str:
        if isinstance(error, NetworkError):
            return error.text()
        _log.error("network of %s: a bug", self._tap, exc_info=error)
        return type(error).__name__

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


async def _see(one: Watched, pictures: dict[Watched, Picture]) -> None:
    pictures[one] = await one.look()


def _only_ours(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Whether nobody has changed it between these, but what we have loaded."""
    return after[0] - before[0] <= 1 and before[1] == after[1]


def _check_links(known: Picture, now: Picture) -> None:
    """NetworkError unless all but the rules, which may be others by now, is as it was."""
    words = [w for w in differences(known, now) if not w.startswith("table ")]
    if words:
        raise NetworkError("; ".join(words[:_WORDS]))
