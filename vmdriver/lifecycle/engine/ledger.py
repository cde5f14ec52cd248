"""What we hold for one sandbox, and how to give it back.

Every acquisition is three things in this order: the intent is written and synced, the
effect happens, the outcome is written. Several may be acquired together: their intents are
one write, their effects go on side by side, their outcomes are one write. Every release is
two: the effects are undone, then their entries are struck out. So whatever is on the host is
in the ledger, at every moment, also after SIGKILL; and undoing what never happened is part of
every release's contract.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from vmdriver.errors import DriverError, StorageError, Unavailable
from vmdriver.host.side_by_side import most_urgent, side_by_side
from vmdriver.host.threads import finished
from vmdriver.lifecycle.ports.host import Guard, Journal, no_crash_point

MACHINE = "machine"
"""The key of the machine: the last that is acquired, the first that is given back."""
T = TypeVar("T")
Line = Mapping[str, Any]
_log = logging.getLogger(__name__)
_PATIENCE_S = 1.5
"""For a program that is only slow to end by itself."""


class Scope(StrEnum):
    """How long something is held."""

    RUNTIME = "runtime"
    """While the machine runs; given back by stop, failure and crash."""
    CAPTURE = "capture"
    """While the machine is held still for its memory or disk to be kept."""
    ATTACHED = "attached"
    """While the machine runs, and as long as memory of it is kept: volumes."""
    PERSISTENT = "persistent"
    """From create to delete."""


@dataclass(frozen=True)
class Held:
    """One entry. `data` is all that a process which never ran the acquisition needs to
    undo it.
    """

    key: str
    scope: Scope
    data: Mapping[str, Any] = field(default_factory=dict)
    done: bool = False
    """False: the effect may or may not have happened."""

    def lines(self) -> list[Line]:
        """As a journal holds it."""
        data = dict(self.data)
        intent = {"op": "intent", "key": self.key, "scope": self.scope.value}
        done: list[Line] = [{"op": "done", "key": self.key}] if self.done else []
        return [{**intent, "data": data}, *done]


Undo = Callable[[Held], Awaitable[None]]


@dataclass(frozen=True)
class Wanted:
    """One thing that is acquired together with others."""

    held: Held
    """Its entry, before it is there."""
    effect: Callable[[], Awaitable[None]]
    may_hang: bool = False

    @property
    def key(self) -> str:
        """Its entry's."""
        return self.held.key


def replay(lines: list[Line]) -> dict[str, Held]:
    """What a journal's lines leave held, in order of acquisition. StorageError when they
    contradict each other: what is missing may be anything.
    """
    held: dict[str, Held] = {}
    for number, line in enumerate(lines, 1):
        try:
            _apply(line, held)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(
                f"the ledger makes no sense in line {number}: {error!r}",
                detail=repr(dict(line))[:500],
                resolution="repair the file or bring it back from a backup, then start "
                "the driver again",
            ) from error
    return held


def _apply(line: Line, held: dict[str, Held]) -> None:
    key, op = line["key"], line["op"]
    if not isinstance(key, str):
        raise TypeError("a key is no text")
    match op:
        case "intent":
            held[key] = Held(key, Scope(line["scope"]), _mapping(line["data"]))
        case "done":
            held[key] = replace(held[key], done=True)
        case "data":
            held[key] = replace(held[key], data=_mapping(line["data"]))
        case "moved":
            held[key] = held.pop(key)
        case "released":
            # Earlier drivers struck an entry twice when they were stopped in between.
            held.pop(key, None)
        case _:
            raise ValueError(f"{op!r} is not known")


def _mapping(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError("data is no object")
    return data


class VolatileJournal:
    """A ports.host.Journal for what needs none when this process has ended: its marks on the host
    say enough.
    """

    def __init__(self, *held: Held) -> None:
        self._lines = [line for entry in held for line in entry.lines()]

    def read(self) -> list[Line]:
        return list(self._lines)

    async def append(self, *lines: Line) -> None:
        self._lines.extend(lines)

    async def rewrite(self, lines: list[Line]) -> None:
        self._lines = list(lines)


class Ledger:
    """One sandbox's ledger. Any task may use it: each write is one step together with what is
    held in memory, and nobody gives back what is just being acquired, or the other way round.
    """

    def __init__(self, journal: Journal, crash_point: Guard = no_crash_point) -> None:
        self._journal = journal
        self._crash_point = crash_point
        lines = journal.read()
        self._held = replay(lines)
        self._lines = len(lines)
        self._later: list[Line] = []
        """Outcomes that are written with whatever is written next."""
        self._writing = asyncio.Lock()
        """Held for single writes only, never while an effect or an undo runs: these may write
        themselves.
        """
        self._busy: set[str] = set()
        """Keys whose effect or undo is under way."""

    def held(self, scope: Scope | None = None) -> tuple[Held, ...]:
        """Entries in order of acquisition."""
        return tuple(h for h in self._held.values() if scope in {None, h.scope})

    def get(self, key: str) -> Held | None:
        """The entry of that key, if held."""
        return self._held.get(key)

    async def acquire(
        self,
        key: str,
        scope: Scope,
        data: Mapping[str, Any],
        effect: Callable[[], Awaitable[T]],
        *,
        may_hang: bool = False,
        note_later: bool = False,
    ) -> T | None:
        """Journal, act, journal. What is held and done is not done again (returns
        None). Unavailable while another task acquires it or gives it back.

        When cancelled during the effect it is finished first, so that the entry tells
        the truth. When the effect fails the entry stays, not done: whoever undoes must
        look. One that `may_hang` is cancelled a moment after that, which is a failure like others.
        `note_later`: the outcome is written with what is written next; a process after this one
        may find the entry not done although all of it is there.
        """
        if self._has(key):
            return None
        with self._alone_at(key):
            await self._crash_point(f"{key}:before-intent")
            await finished(self._put(Held(key, scope, dict(data))))
            await self._crash_point(f"{key}:after-intent")
            patience_s = _PATIENCE_S if may_hang else None
            result = await finished(effect(), patience_s)
            await self._crash_point(f"{key}:after-effect")
            await finished(self._note([key], later=note_later))
            await self._crash_point(f"{key}:after-outcome")
        return result

    async def acquire_together(
        self, wanted: Sequence[Wanted], *, note_later: bool = False
    ) -> None:
        """The same for several, of which none stands on another; they are undone in the reverse of
        this order. What one effect raises is raised when all have ended; what came to its end is
        done nevertheless.
        """
        missing = [one for one in wanted if not self._has(one.key)]
        with ExitStack() as busy:
            for one in missing:
                busy.enter_context(self._alone_at(one.key))
                await self._crash_point(f"{one.key}:before-intent")
            if not missing:
                return
            await finished(self._put(*(one.held for one in missing)))
            for one in missing:
                await self._crash_point(f"{one.key}:after-intent")
            ended, errors = await side_by_side(
                {one.key: self._have(one) for one in missing}
            )
            keys = [one.key for one in missing if one.key in ended]
            try:
                await finished(self._note(keys, later=note_later))
            except DriverError:
                if not errors:  # else these say more, and all of it is undone
                    raise
            if errors:
                raise most_urgent(errors)
            for key in keys:
                await self._crash_point(f"{key}:after-outcome")

    async def acquire_in_turn(self, wanted: Sequence[Wanted]) -> None:
        """The same for several of which each stands on the one before: their intents are one write,
        their effects follow each other, and nothing is written between them: the outcomes are with
        what is written next. What one that fails keeps from beginning is struck out, not undone:
        somebody else may have done the same. For what may not take longer than its effects.
        """
        missing = [one for one in wanted if not self._has(one.key)]
        unbegun = {one.key for one in missing} - self._held.keys()
        with ExitStack() as busy:
            for one in missing:
                busy.enter_context(self._alone_at(one.key))
                await self._crash_point(f"{one.key}:before-intent")
            try:
                await finished(self._put(*(one.held for one in missing)))
                for one in missing:
                    await self._crash_point(f"{one.key}:after-intent")
                for one in missing:
                    unbegun.discard(one.key)
                    await self._have(one)
                    await finished(self._note([one.key], later=True))
                    await self._crash_point(f"{one.key}:after-outcome")
            except (Exception, asyncio.CancelledError):
                if unbegun := unbegun & self._held.keys():
                    with suppress(DriverError):  # else whoever undoes it must look
                        await finished(self._strike([*unbegun]))
                raise

    async def _have(self, one: Wanted) -> None:
        await finished(one.effect(), _PATIENCE_S if one.may_hang else None)
        await self._crash_point(f"{one.key}:after-effect")

    def _has(self, key: str) -> bool:
        """It is there, and nobody is at it."""
        present = self._held.get(key)
        return present is not None and present.done and key not in self._busy

    async def remember(self, key: str, data: Mapping[str, Any]) -> None:
        """Replace an entry's data: what its undo will be given. What has been given back
        meanwhile needs none.
        """
        await self.remember_all({key: data})

    async def remember_all(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """The same for several entries, by key, in one write."""
        await finished(self._remember(data))

    async def move_to_end(self, key: str) -> None:
        """Something more was acquired behind this entry: it is undone before everything that is
        held now.
        """
        await finished(self._move_to_end(key))

    async def hand_over(self, *keys: str) -> None:
        """Strike entries that another ledger holds from now on, or that were undone: nothing is."""
        await finished(self._strike([*keys]))

    def forget(self) -> None:
        """Its file is, with the sandbox: nothing is held, whatever was not struck out."""
        self._held, self._later = {}, []

    async def release(
        self, scope: Scope | None, undo: Undo, *, level: int = logging.WARNING
    ) -> list[Exception]:
        """Undo entries of a scope (None: all) in reverse, then strike them out. Goes on after
        an error; what failed stays held.

        Everything is undone before anything is struck: on a full disk, where the ledger
        cannot grow, nothing stays as it is for that reason. StorageError then: all of it is
        held still, and is given back once more. `level`: of the log of what fails.
        """
        errors: list[Exception] = []
        undone: list[str] = []
        with ExitStack() as busy:
            for entry in reversed(self.held(scope)):
                await self._crash_point(f"{entry.key}:before-release")
                try:
                    busy.enter_context(self._alone_at(entry.key))
                    await finished(undo(entry))
                except Exception as error:  # noqa: BLE001 - one failing undo must not keep the others from running
                    _log.log(level, "undo of %s failed: %s", entry.key, error)
                    errors.append(error)
                    continue
                undone.append(entry.key)
                await self._crash_point(f"{entry.key}:after-release")
            if undone:
                await finished(self._strike(undone))
        for key in undone:
            await self._crash_point(f"{key}:after-strike")
        return errors

    @contextmanager
    def _alone_at(self, key: str) -> Iterator[None]:
        if key in self._busy:
            raise Unavailable(f"{key} is being acquired or given back; try again")
        self._busy.add(key)
        try:
            yield
        finally:
            self._busy.discard(key)

    # --- writes: on disk first, then in memory, and nothing of this ledger in between

    async def _append(self, *lines: Line) -> None:
        lines = (*self._later, *lines)
        await self._journal.append(*lines)
        self._later = []
        self._lines += len(lines)

    async def _put(self, *entries: Held) -> None:
        async with self._writing:
            await self._append(*(line for entry in entries for line in entry.lines()))
            self._held |= {entry.key: entry for entry in entries}

    async def _note(self, keys: Sequence[str], *, later: bool) -> None:
        """They are there."""
        async with self._writing:
            held = [key for key in keys if key in self._held]
            lines = [{"op": "done", "key": key} for key in held]
            if later:
                self._later += lines
            elif lines:
                await self._append(*lines)
            self._held |= {key: replace(self._held[key], done=True) for key in held}

    async def _remember(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        async with self._writing:
            known = {key: dict(new) for key, new in data.items() if key in self._held}
            if not known:
                return
            lines = [{"op": "data", "key": k, "data": new} for k, new in known.items()]
            await self._append(*lines)
            for key, new in known.items():
                self._held[key] = replace(self._held[key], data=new)

    async def _move_to_end(self, key: str) -> None:
        async with self._writing:
            if key in self._held:
                await self._append({"op": "moved", "key": key})
                self._held[key] = self._held.pop(key)

    async def _strike(self, keys: list[str]) -> None:
        async with self._writing:
            rest = {key: held for key, held in self._held.items() if key not in keys}
            if rest:
                await self._append(*({"op": "released", "key": key} for key in keys))
            else:
                # Not by growing: a full disk does not keep a sandbox that is to go.
                await self._journal.rewrite([])
                self._lines, self._later = 0, []
            self._held = rest
            await self._compact()

    async def _compact(self) -> None:
        if self._lines < 64 + 4 * len(self._held):
            return
        lines = [line for entry in self._held.values() for line in entry.lines()]
        try:
            await self._journal.rewrite(lines)
        except StorageError as error:
            _log.warning("a ledger stays long: %s", error.text())
            return
        self._lines = len(lines)
