"""What extensions have in a sandbox's ledger: the one scheme of its keys, and what is noted under
them. An entry has no effect of its own: the extension acts when it is on disk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.engine.resource import Given
from vmdriver.lifecycle.extending.phases import Hold, Until
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason

HOOKS, PHASES = "hooks", "phases"
"""The two languages of extensions."""


class Mark(Enum):
    """What an entry stands for."""

    RUN = Scope.RUNTIME
    """Takes part in this run: its end is told."""
    STAY = Scope.PERSISTENT
    """Takes part in this sandbox: its end is told."""
    HOLD = "hold"
    """Holds something; the entry's scope says until when."""


KEYS: Mapping[str, tuple[str, Mark]] = {
    "launch-hook:": (HOOKS, Mark.RUN),
    "delete-hook:": (HOOKS, Mark.STAY),
    "run-phases:": (PHASES, Mark.RUN),
    "stay-phases:": (PHASES, Mark.STAY),
    "hold:": (PHASES, Mark.HOLD),
}
"""What a key begins with, who writes it, and what it means. All of it is in ledgers of 0.1.0."""
PREFIXES = tuple(KEYS)
_SCOPES = {Until.STOP: Scope.RUNTIME, Until.DELETE: Scope.PERSISTENT}


def is_extensions(key: str) -> bool:
    """Whether a ledger entry is an extension's, not the machine's."""
    return key.startswith(PREFIXES)


def meaning(key: str) -> tuple[str, Mark]:
    """Of an extension's key: its writer's language, and the mark. LookupError for another's."""
    for prefix, found in KEYS.items():
        if key.startswith(prefix):
            return found
    raise LookupError(f"no extension writes {key}")


def is_hold(held: Held) -> bool:
    """Whether an entry is something that an extension holds."""
    return is_extensions(held.key) and meaning(held.key)[1] is Mark.HOLD


def hold_of(held: Held) -> Hold:
    """As its extension sees it."""
    return Hold(held.data["kind"], held.data["name"], held.data["undo"])


def holds_of(ledger: Ledger) -> list[Held]:
    """Everything that extensions hold, oldest first."""
    return [held for held in ledger.held() if is_hold(held)]


@dataclass(frozen=True)
class ExtensionEntries:
    """Those whose keys begin so, as a resource; `undo` is the runner's."""

    key: str
    undo: Callable[[SandboxRecord, Ledger, Held, Reason], Awaitable[None]]
    needs = ("extension",)

    async def release(self, given: Given) -> None:
        """NotLoaded."""
        assert given.record is not None  # noqa: S101 - extensions belong to sandboxes
        await self.undo(given.record, given.ledger, given.held, given.reason)


@dataclass(frozen=True)
class Notes:
    """One extension's entries for one sandbox. Without a ledger there are none, and none can be
    made.
    """

    ledger: Ledger | None
    name: str
    language: str

    def _key(self, mark: Mark) -> str:
        prefix = next(p for p, found in KEYS.items() if found == (self.language, mark))
        return prefix + self.name

    def _get(self, mark: Mark) -> Held | None:
        return self.ledger.get(self._key(mark)) if self.ledger else None

    async def _put(self, key: str, scope: Scope, **data: Any) -> None:
        assert self.ledger is not None  # noqa: S101 - where there is none nobody begins anything
        data = {"extension": self.name, **data}
        await self.ledger.acquire(key, scope, data, _nothing)

    async def _change(self, entry: Held | None, **data: Any) -> None:
        if self.ledger is not None and entry is not None:
            await self.ledger.remember(entry.key, {**entry.data, **data})

    async def begin(self, mark: Mark, **data: Any) -> None:
        """From here on, an end of this is told. What is noted already stays as it is."""
        await self._put(self._key(mark), Scope(mark.value), **data)

    async def begin_last(self, mark: Mark) -> None:
        """Whoever follows phases may have noted something since: this is undone before that."""
        entry = self._get(mark)
        if self.ledger is None or entry is None:
            return
        entries = self.ledger.held(entry.scope)
        behind = entries[entries.index(entry) + 1 :]
        if any(is_extensions(e.key) and meaning(e.key)[0] == PHASES for e in behind):
            await self.ledger.move_to_end(entry.key)

    def is_untold(self, mark: Mark) -> bool:
        """Whether it began this and has not been told of its end."""
        entry = self._get(mark)
        return entry is not None and not entry.data.get("told")

    async def told(self, mark: Mark) -> None:
        """Its end has been told."""
        await self._change(self._get(mark), told=True)

    def saved(self, *marks: Mark) -> dict[str, Any]:
        """What was saved with these entries; of two the later one's word counts."""
        entries = [entry for entry in map(self._get, marks) if entry is not None]
        return {k: v for e in entries for k, v in e.data.get("saved", {}).items()}

    async def save(self, state: Mapping[str, Any]) -> None:
        """Durably: with the sandbox, and with its run."""
        for mark in (Mark.STAY, Mark.RUN):
            await self._change(self._get(mark), saved=dict(state))

    def holds(self) -> tuple[Hold, ...]:
        """What it holds, oldest first."""
        held = holds_of(self.ledger) if self.ledger else []
        return tuple(hold_of(h) for h in held if h.data["extension"] == self.name)

    async def keep(
        self, kind: str, name: str, undo_data: Mapping[str, Any], until: Until
    ) -> None:
        """Note, durably, what `undo` will have to give back. Once more: with other data."""
        key = f"{self._key(Mark.HOLD)}:{kind}:{name}"
        entry = self.ledger.get(key) if self.ledger else None
        undo = dict(undo_data)
        if entry is not None:
            await self._change(entry, undo=undo)
        else:
            await self._put(key, _SCOPES[until], kind=kind, name=name, undo=undo)


async def _nothing() -> None:
    """See this page's first lines."""
