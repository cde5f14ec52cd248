"""One sandbox behind a composed driver: its record, what is held for it, and the phases around
what happens to it. One thing at a time happens to a sandbox.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vmdriver.compose.store import Record, Stage, Store
from vmdriver.errors import DriverError
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.draft import Draft
from vmdriver.lifecycle.extending.notes import holds_of
from vmdriver.lifecycle.extending.runner import Runner

_log = logging.getLogger(__name__)


@dataclass
class Composed:
    """A sandbox. `lock` is held by whoever does something to it."""

    record: Record
    ledger: Ledger
    store: Store
    runner: Runner[Record]
    tell: Callable[[str, str, str], None]
    """Publishes a platform event: sandbox id, reason, message."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    abandoned_at: float = field(default_factory=time.monotonic)
    """While it is CREATING and nobody is at it: since when (monotonic seconds)."""
    base_asked: bool = True
    """The base may know of it. False: its create has not come that far."""
    start_open_until: float | None = None
    """A start was asked for that the base has not answered, and until then (monotonic seconds) may
    still begin; or one that has not shown yet.
    """
    start_answered: bool = False
    """The base has said yes to that one, so only "suspended" may still be of the run before."""
    cut_off: bool = False
    """A process before ended while it was to start: perhaps before extensions were ready for it."""
    look_again: bool = False
    """What the base said could not be noted."""
    retries: int = 0
    retry_at: float = 0.0
    """When what could not be undone is tried again (monotonic seconds)."""
    trouble: str = ""
    """What could not be undone, for conditions and discovery."""

    async def update(self, **changes: Any) -> None:
        """Change the record, durably."""
        self.record = self.record.model_copy(update=changes)
        await self.store.save(self.record)

    async def ask(
        self, phase: CallPoint, trace: Mapping[str, str], draft: Draft | None = None
    ) -> None:
        """A set-up phase; the first error is raised."""
        await self.runner.ask(phase, self.record, self.ledger, trace, draft)

    async def report(self, phase: CallPoint) -> None:
        """A phase about what has happened; errors are shown."""
        await self.runner.report(phase, self.record, self.ledger)

    # --- ends

    async def run_ended(self) -> None:
        """A run is over, however; told once."""
        if not self.record.up:
            return
        self.start_open_until, self.cut_off = None, False
        await self.report(CallPoint.AFTER_STOP)
        await self.give_back(Scope.RUNTIME)
        await self.update(up=False, ready_told=False)

    @property
    def may_still_start(self) -> bool:
        """What the base says of its end may be of the run before."""
        until = self.start_open_until
        return until is not None and time.monotonic() < until

    async def create_failed(self) -> None:
        """The base does not have it: as if it had never been asked for."""
        if self.record.stage is not Stage.GONE:
            await self.run_ended()
            await self.report(CallPoint.ON_CREATE_FAILED)
        await self._forget()

    async def gone(self) -> None:
        """The base does not have it any more."""
        if self.record.stage is not Stage.GONE:
            await self.run_ended()
            await self.report(CallPoint.AFTER_DELETE)
        await self._forget()

    async def _forget(self) -> None:
        await self.give_back(None)
        if self.ledger.held() or self.record.stage is not Stage.GONE:
            await self.update(stage=Stage.GONE, up=False)
        if not self.ledger.held():
            await self.store.remove(self.record.id)

    async def give_back(self, scope: Scope | None) -> None:
        """Undo what is held. What fails stays, and is tried again by `clean_again`."""
        problems = await self.runner.give_back(self.record, self.ledger, scope)
        text = "; ".join(problems)
        self.retries = self.retries + 1 if text else 0
        self.retry_at = time.monotonic() + backoff_s(self.retries, most_s=60.0)
        if text and text != self.trouble:
            self.tell(self.record.id, "ExtensionCleanupFailed", text)
        self.trouble = text

    @property
    def forgotten(self) -> bool:
        """Nothing is left of it, here or anywhere."""
        return self.record.stage is Stage.GONE and not self.ledger.held()

    def overdue(self) -> bool:
        """Whether something should have been given back by now."""
        if self.record.stage is Stage.GONE:
            return True
        held = {h.scope for h in holds_of(self.ledger)}
        return not self.record.up and Scope.RUNTIME in held

    async def clean_again(self) -> None:
        """Try once more, if it is time."""
        if time.monotonic() < self.retry_at:
            return
        try:
            if self.record.stage is Stage.GONE:
                await self._forget()
            elif self.overdue():
                await self.give_back(Scope.RUNTIME)
        except DriverError as error:
            _log.warning("%s: %s", self.record.id, error)
