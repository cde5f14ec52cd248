"""The model: what callers were told, and what must therefore hold. Pure but for its locks."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class Wish(StrEnum):
    """What may have been asked of a sandbox last."""

    RUNNING = "running"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    GONE = "gone"


@dataclass(frozen=True)
class Promise:
    """What a snapshot, or a machine, has: numbers that were written, synced and told."""

    files: frozenset[int] = frozenset()
    memory: frozenset[int] = frozenset()

    def __and__(self, other: Promise) -> Promise:
        return Promise(self.files & other.files, self.memory & other.memory)


@dataclass
class Kept:
    """A snapshot. `certain`: its making was acknowledged, its removal never asked for."""

    promise: Promise
    certain: bool


@dataclass
class Sandbox:
    """One sandbox. `lock` is held by whoever acts on it; a QEMU may be killed any time."""

    id: str
    suspends: bool
    may: set[Wish]
    """Every state that what was acknowledged allows."""
    holds: Promise = Promise()
    snapshots: dict[str, Kept] = field(default_factory=dict)
    created: float = 0.0
    deleted: bool = False
    """DeleteSandbox has answered `true`."""
    gone: tuple[float, float] | None = None
    """When its delete was asked for, and when it was not known any more."""
    quiet_until: float = 0.0
    """time.monotonic(): nothing is written before, as it may still be returned to a snapshot."""
    faults: list[str] = field(default_factory=list)
    """What was done to its machine: a failure is no broken promise then."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    _state: threading.Lock = field(default_factory=threading.Lock)
    _deaths: int = 0

    def asked(self, wishes: Iterable[Wish], *, certain: bool) -> None:
        """Calls that overlapped were answered: one of their wishes holds. Not `certain`: or
        still what was before.
        """
        if not self.deleted:
            self.may = set(wishes) | (set() if certain else self.may)

    def was_deleted(self) -> None:
        """Told so: final."""
        self.deleted, self.may = True, {Wish.GONE}

    def deaths(self) -> int:
        with self._state:
            return self._deaths

    def machine_dies(self, why: str) -> None:
        """Called before and after it is killed: no memory that was written meanwhile counts."""
        with self._state:
            self._deaths += 1
            self.holds = Promise(self.holds.files)
            self.faults.append(why)

    def forgets_memory(self) -> None:
        """It was stopped: its disk remains."""
        with self._state:
            self.holds = Promise(self.holds.files)

    def wrote(self, number: int, deaths: int) -> None:
        """A guest told that this is on its disk. `deaths`: when it was asked to."""
        with self._state:
            memory = self.holds.memory
            if deaths == self._deaths:
                memory = memory | {number}
            self.holds = Promise(self.holds.files | {number}, memory)

    def returned(self, to: Promise, deaths: int, *, certain: bool) -> None:
        """To a snapshot; or perhaps to it."""
        with self._state:
            holds = to if certain else to & self.holds
            self.holds = holds if deaths == self._deaths else Promise(holds.files)


class Sandboxes:
    """All sandboxes of a storm, those that are gone too."""

    def __init__(self) -> None:
        self._all: dict[str, Sandbox] = {}
        self._lock = threading.Lock()

    def add(self, sandbox: Sandbox) -> None:
        with self._lock:
            self._all[sandbox.id] = sandbox

    def every(self) -> list[Sandbox]:
        with self._lock:
            return list(self._all.values())

    def living(self) -> list[Sandbox]:
        return [sandbox for sandbox in self.every() if sandbox.may != {Wish.GONE}]

    def get(self, sandbox_id: str) -> Sandbox | None:
        return self._all.get(sandbox_id)
