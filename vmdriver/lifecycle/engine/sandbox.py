"""The handle of one sandbox: its record and its ledger, and what this process knows of it besides.

The record is changed on disk first, then for everybody who watches or waits. Whoever does something
with a sandbox is given its handle; who does what is no business of the handle.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from vmdriver.errors import DriverError, NotFound, Refused, TimedOut, Unavailable
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine import measures
from vmdriver.lifecycle.engine.broadcast import (
    Broadcaster,
    Changed,
    Deleted,
    Happened,
    Notice,
)
from vmdriver.lifecycle.engine.jobs import Jobs
from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Ledger, Scope
from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.lifecycle.engine.underway import Underway
from vmdriver.lifecycle.ports.host import Records
from vmdriver.model.condition import (
    PlatformEvent,
    Progress,
    SandboxStatus,
    Standstill,
    network_standstill,
    status_of,
)
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord, layers_of, utc_now

_log = logging.getLogger(__name__)
Decision = Callable[[SandboxRecord], Mapping[str, Any]]
"""The fields to change, given the record as it is."""
DOWN = frozenset({Phase.STOPPED, Phase.SUSPENDED, Phase.FAILED})
"""Phases of a sandbox that is not to have a machine."""


class Sandbox:
    """One for each sandbox that this process knows, as long as it knows it. `abandon`: has whoever
    waits for a machine of that name told that it is given up.
    """

    def __init__(
        self,
        record: SandboxRecord,
        ledger: Ledger,
        *,
        records: Records,
        broadcaster: Broadcaster,
        abandon: Callable[[str], None],
    ) -> None:
        self.record = record
        self.ledger = ledger
        self.gone = False
        self.still: Standstill | None = network_standstill(record)
        """Why the machine stands still, as far as it is known."""
        self.status: SandboxStatus = status_of(record, self.still)
        self.unsaved = False
        """The record on disk is older than this one."""
        self.untidy = False
        """There may be files that the record has named, or was to name, and does not."""
        self.trouble = ""
        """The last error that is being retried, for whoever asks."""
        self.refusal: DriverError | None = None
        """Why the last suspension was not to be."""
        self.jobs = Jobs(record.id, self._cut_off)
        self.underway = Underway(self.give_up)
        self.woken = asyncio.Event()
        """Something may have changed: its loop is to look."""
        self.adopted = record.phase is not Phase.RUNNING
        """False: its machine runs since before this process, and extensions do not know yet."""
        self.reconcile_due = False
        """The sandbox was there before this process; extensions are still to be told."""
        self.merge_due = False
        """It went down; its layers may be fewer."""
        self.owed = ""
        """What extensions could not give back, for whoever asks."""
        self.clean_again_at = 0.0
        """When that is tried again (monotonic seconds)."""
        self.clean_ups = 0
        """How often it has been tried."""
        self.stopwatch = Stopwatch()
        """Of the start that is under way, or was last."""
        self.phase_since = time.monotonic()
        """Its phase is what it is since then, as far as this process knows."""
        self._wished_at = time.monotonic() if record.phase is Phase.NEW else None
        self._records = records
        self._broadcaster = broadcaster
        self._abandon = abandon
        self._saving = asyncio.Lock()
        self._waiters: set[asyncio.Future[None]] = set()

    def announce(self) -> None:
        """Show it to the watchers as it is now: a new one, or to one whose picture may be old."""
        self._broadcaster.publish(Changed(self.status))

    async def until(
        self, reached: Callable[[SandboxRecord], bool], timeout_s: float
    ) -> None:
        """Wait until the record satisfies a predicate or the sandbox is gone. TimedOut."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.gone and not reached(self.record):
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
        except TimeoutError as error:
            text = f"sandbox {self.record.id} is not there yet after {timeout_s:g} s"
            raise TimedOut(
                f"{text}: {self.trouble}" if self.trouble else text
            ) from error

    async def update(self, **changes: Any) -> None:
        """Change what only the sandbox's own loop changes: on disk first, then for everybody."""
        if "intent" in changes:
            raise TypeError("the intent is decided on, see `decide`")
        await self.decide(lambda _: changes)

    async def note(self, **changes: Any) -> None:
        """Say where an ending stands. It goes on if that cannot be stored: the wish is, and the
        next process begins again from that.
        """
        await self.decide(lambda _: changes, regardless=True)

    async def decide(self, decision: Decision, *, regardless: bool = False) -> None:
        """Change the record as `decision` says, given the record of that very moment, which nobody
        changes in between: on disk first, then for everybody. What it raises is raised, and
        nothing has changed. A cancellation is raised when the change is done: disk and memory
        always say the same, but for what holds `regardless` of whether it can be stored: then
        `unsaved` is true until something is.
        """
        await finished(self._decided(decision, regardless=regardless))

    async def _decided(self, decision: Decision, *, regardless: bool) -> None:
        asked_at = time.monotonic()
        async with self._saving:
            record = self.record.model_copy(update=dict(decision(self.record)))
            if record == self.record and not self.unsaved:
                return
            if self.gone:  # it would be on disk again
                raise NotFound(f"sandbox {record.id} was deleted meanwhile")
            if _shown(status_of(record, self.still)) != _shown(self.status):
                record = record.model_copy(update={"changed_at": utc_now()})
            try:
                await self._records.save(record)
            except DriverError as error:
                self.untidy = True
                if not regardless:
                    raise
                _log.warning("%s: %s", record.id, error.text())
                self.unsaved = True
            else:
                self.unsaved = False
            self.untidy |= not _named(self.record) <= _named(record)
            if record.intent is Intent.RUNNING is not self.record.intent:
                self._wished_at = asked_at
            before, self.record = self.record, record
        self._measure(before)
        self._publish()

    def _measure(self, before: SandboxRecord) -> None:
        if self.record.phase is not before.phase:
            self.phase_since = time.monotonic()
        failure, start = self.record.failure, self.record.last_start
        if failure is not None and failure != before.failure:
            measures.failure(failure.reason)
        if start is not None and start != before.last_start:
            measures.done(start.kind, self.record.id, start.steps)

    async def show_still(self, still: Standstill | None) -> None:
        """Show that the machine stands still, and why, or that it goes on. A full disk takes no
        notes: only the end of it is written down.
        """
        before = self.still
        if still is not None and before is not None and still.reason == before.reason:
            return
        self.still = still
        if still is not None:
            self._publish()
            self.tell(
                still.reason, f"the machine stands still: {still.message}", warn=True
            )
        elif before is not None:
            self.tell("GoesOn", "the machine does not stand still any more")
            await self.update(changed_at=utc_now())

    def begin_start(self) -> Stopwatch:
        """A start begins, whose steps are timed: from the wish for it, the first time."""
        wished_at, self._wished_at = self._wished_at, None
        self.stopwatch = Stopwatch(wished_at)
        self.stopwatch.passed("accepted")
        return self.stopwatch

    def _publish(self) -> None:
        status = status_of(self.record, self.still)
        if status != self.status:
            self.status = status
            self._show(Changed(status))
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def tell(
        self,
        reason: str,
        message: str,
        progress: Progress | None = None,
        *,
        warn: bool = False,
    ) -> None:
        """Publish a platform event."""
        event = PlatformEvent(
            reason=reason,
            message=message,
            at=utc_now(),
            type="Warning" if warn else "Normal",
            metadata=progress.metadata() if progress else {},
        )
        _log.log(
            logging.WARNING if warn else logging.INFO,
            "%s: %s: %s",
            self.record.id,
            reason,
            message,
            extra={"sandbox": self.record.id},
        )
        measures.event(event.reason, event.type)
        self._show(Happened(self.record.id, event))

    def _show(self, notice: Notice) -> None:
        """Nobody knows yet of a sandbox that is not accepted."""
        if self.record.extensions.accepted:
            self._broadcaster.publish(notice)

    def give_up(self) -> None:
        """Have whoever waits for its machine told that it is given up."""
        plan, held = self.record.plan, self.ledger.get(MACHINE)
        domains = {plan.domain} if plan else set()
        if held is not None:
            domains.add(held.data["domain"])
        for domain in domains:
            self._abandon(domain)

    def going_down(self) -> bool:
        """There is a machine, and it is to be ended: nothing of it is to go on before."""
        asked = self.record.intent in {Intent.STOPPED, Intent.DELETED}
        ending = asked or self.record.phase is Phase.STOPPING
        return ending and self.ledger.get(MACHINE) is not None

    def owes(self, entry: Held) -> bool:
        """Whether an extension's entry should have been given back by now."""
        if self.record.intent is Intent.DELETED:
            return bool(self.owed)
        return entry.scope is Scope.RUNTIME and self.record.phase in DOWN

    def _cut_off(self) -> DriverError:
        text = f"sandbox {self.record.id}: this was cut off"
        if self.record.intent is Intent.RUNNING:
            return Unavailable(f"{text}, since the driver ends")
        return Refused(f"{text}, since the sandbox is being stopped or deleted")

    async def vanish(self, forget: Callable[[str], None]) -> None:
        """The sandbox is gone for good: its record too, which nobody writes anew, and whoever is
        told of it is told in the same breath, also when cancelled.
        """
        await finished(self._vanished(forget))

    async def _vanished(self, forget: Callable[[str], None]) -> None:
        async with self._saving:
            known = self.record.extensions.accepted
            await self._records.remove(self.record.id, noted=known)
            self.gone = True
            self.ledger.forget()
        forget(self.record.id)
        self._show(Deleted(self.record.id))
        self._publish()


def _named(record: SandboxRecord) -> set[str]:
    """Files that are there for this record's sake."""
    memories = [record.memory, *(entry.memory for entry in record.snapshots)]
    return layers_of(record) | {ref.directory for ref in memories if ref is not None}


def _shown(status: SandboxStatus) -> list[tuple[str, str, str, str]]:
    return [(c.type, c.status, c.reason, c.message) for c in status.conditions]
