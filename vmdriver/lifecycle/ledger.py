"""What we hold for one sandbox, and how to give it back.

Every acquisition is three things in this order: the intent is written and synced, the
effect happens, the outcome is written. Every release is two: the effect is undone, then
the entry is struck out. So whatever is on the host is in the ledger, at every moment,
also after SIGKILL; and undoing what never happened is part of every release's contract.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from vmdriver.host.threads import finished
from vmdriver.lifecycle.ports import Guard, Journal, no_checkpoint

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Scope(StrEnum):
    """How long something is held."""

    RUNTIME = "runtime"
    """While the machine runs; given back by stop, failure and crash."""
    CAPTURE = "capture"
    """While the machine is held still for its memory or disk to be kept."""
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


Undo = Callable[[Held], Awaitable[None]]


def replay(lines: list[Mapping[str, Any]]) -> dict[str, Held]:
    """What a journal's lines leave held, in order of acquisition."""
    held: dict[str, Held] = {}
    for line in lines:
        key = line["key"]
        match line["op"]:
            case "intent":
                held[key] = Held(key, Scope(line["scope"]), line["data"])
            case "done":
                held[key] = replace(held[key], done=True)
            case "data":
                held[key] = replace(held[key], data=line["data"])
            case "moved":
                held[key] = held.pop(key)
            case "released":
                held.pop(key, None)
    return held


class Ledger:
    """One sandbox's ledger. Used by its worker only, so it needs no lock."""

    def __init__(self, journal: Journal, checkpoint: Guard = no_checkpoint) -> None:
        self._journal = journal
        self._checkpoint = checkpoint
        lines = journal.read()
        self._held = replay(lines)
        self._lines = len(lines)

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
    ) -> T | None:
        """Journal, act, journal. What is held and done is not done again (returns
        None).

        When cancelled during the effect it is finished first, so that the entry tells
        the truth. When the effect fails the entry stays, not done: whoever undoes must
        look.
        """
        present = self._held.get(key)
        if present is not None and present.done:
            return None
        await self._checkpoint(f"{key}:before-intent")
        await self._write(
            {"op": "intent", "key": key, "scope": scope.value, "data": dict(data)}
        )
        self._held[key] = Held(key, scope, dict(data))
        await self._checkpoint(f"{key}:after-intent")
        result = await finished(effect())
        await self._checkpoint(f"{key}:after-effect")
        await self._write({"op": "done", "key": key})
        self._held[key] = replace(self._held[key], done=True)
        await self._checkpoint(f"{key}:after-outcome")
        return result

    async def remember(self, key: str, data: Mapping[str, Any]) -> None:
        """Replace an entry's data: what its undo will be given."""
        await self._write({"op": "data", "key": key, "data": dict(data)})
        self._held[key] = replace(self._held[key], data=dict(data))

    async def move_to_end(self, key: str) -> None:
        """Something more was acquired behind this entry: it is undone before everything that is
        held now.
        """
        await self._write({"op": "moved", "key": key})
        self._held[key] = self._held.pop(key)

    async def release(self, scope: Scope | None, undo: Undo) -> list[Exception]:
        """Undo entries of a scope (None: all) in reverse. Goes on after an error; what
        failed stays held.
        """
        errors: list[Exception] = []
        for entry in reversed(self.held(scope)):
            await self._checkpoint(f"{entry.key}:before-release")
            try:
                await finished(undo(entry))
            except Exception as error:  # noqa: BLE001 - one failing undo must not keep the others from running
                _log.warning("undo of %s failed: %s", entry.key, error)
                errors.append(error)
                continue
            await self._checkpoint(f"{entry.key}:after-release")
            await self._write({"op": "released", "key": entry.key})
            self._held.pop(entry.key, None)
            await self._checkpoint(f"{entry.key}:after-strike")
        await self._compact()
        return errors

    async def _write(self, line: Mapping[str, Any]) -> None:
        await finished(self._journal.append(line))
        self._lines += 1

    async def _compact(self) -> None:
        if self._lines < 64 + 4 * len(self._held):
            return
        lines: list[Mapping[str, Any]] = []
        for entry in self._held.values():
            lines.append(
                {
                    "op": "intent",
                    "key": entry.key,
                    "scope": entry.scope.value,
                    "data": dict(entry.data),
                }
            )
            if entry.done:
                lines.append({"op": "done", "key": entry.key})
        await self._journal.rewrite(lines)
        self._lines = len(lines)
