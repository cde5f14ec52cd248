"""A sandbox's record together with what is held for it: the ground that launches and
ends stand on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from vmdriver.errors import CleanupError, DriverError, StorageError
from vmdriver.host import facts
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.engine.broadcast import Hub
from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.engine.sandbox import SandboxState
from vmdriver.lifecycle.engine.standstill import Waker
from vmdriver.lifecycle.engine.underway import Underway
from vmdriver.lifecycle.extending.runner import ExtensionRunner, is_extensions
from vmdriver.lifecycle.launch import endings
from vmdriver.lifecycle.launch.launcher import Launcher
from vmdriver.lifecycle.launch.resources import MACHINE, Undoer
from vmdriver.lifecycle.memory.held_still import HeldStill
from vmdriver.lifecycle.memory.restore_tries import RestoreTries
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.pool import WarmPool
from vmdriver.lifecycle.templates.template import Templates
from vmdriver.model.phase import (
    SAID,
    DomainState,
    Intent,
    MachineState,
    Phase,
    machine_state,
)
from vmdriver.model.record import Failure, SandboxRecord
from vmdriver.model.runs import Reason, RestoreKind

_LAUNCH_RETRIES = 1
_CONFIRMED = {Phase.RUNNING, Phase.SUSPENDING}
"""Phases of a machine whose guest has said that it started."""


@dataclass(frozen=True)
class Shared:
    """What all workers share."""

    ports: Ports
    settings: Settings
    launcher: Launcher
    extensions: ExtensionRunner
    undoer: Undoer
    hub: Hub
    forget: Callable[[str], None]
    """Called when the sandbox is gone."""
    layers_of_others: Callable[[str], set[str]]
    """Every root disk layer that somebody else than this sandbox needs."""
    templates: Templates
    warm_pool: WarmPool
    host_snapshots: Callable[[], tuple[int, int]]
    """Number and bytes of all snapshots on this host."""


class SandboxHold(SandboxState):
    """Record, ledger, and the wake-up of whoever looks after them."""

    def __init__(self, record: SandboxRecord, ledger: Ledger, shared: Shared) -> None:
        super().__init__(record, shared.ports.records, shared.hub)
        self.ledger = ledger
        self._shared = shared
        self._wake = asyncio.Event()
        self.underway = Underway(self._give_up)
        self._task: asyncio.Task[None] | None = None
        self._adopted = record.phase is not Phase.RUNNING
        self.reconcile_due = False
        """The sandbox was there before this process; extensions are still to be told."""
        self.owed = ""
        """What extensions could not give back, for whoever asks."""
        self.clean_again_at = 0.0
        """When that is tried again (monotonic seconds)."""
        self._clean_ups = 0
        self._waker = Waker(shared.ports)
        self._held_still = HeldStill()
        self.restoring = RestoreTries(shared.settings.restore_retry_s)
        self._not_undone = 0
        self._merge_due = False
        """It went down; its layers may be fewer."""

    async def observe(self) -> tuple[MachineState, GuestReport]:
        """What libvirt and the guest say now."""
        plan, held = self.record.plan, self.ledger.get(MACHINE)
        if plan is None or held is None:
            return MachineState.ABSENT, GuestReport()
        domain = await self._shared.ports.hypervisor.observe(plan.domain)
        report = await self._shared.ports.disks.report(plan.disk("status").path)
        half_way = not held.done and report.phase not in SAID
        if half_way and (domain is not DomainState.RUNNING or plan.template):
            # A start that was cut off: defined, perhaps paused, never let go; or loaded
            # from a template and never told who it is.
            domain = DomainState.ABSENT
        if domain is DomainState.PAUSED and self._is_nobodys_pause():
            domain = DomainState.STALLED
        rebooted = self.record.host_boot_id != facts.boot_id()
        if rebooted and domain in {DomainState.OFF, DomainState.CRASHED}:
            # It ended with the host, unless it had said before that it was ending by itself.
            domain = domain if report.phase == "exited" else DomainState.ABSENT
        said = report.phase
        if self.record.phase in _CONFIRMED and said not in {"exited", "failed"}:
            # It has started once, and cannot take that back by scribbling on its disk.
            said = "started"
        return machine_state(domain, said), report

    def _is_nobodys_pause(self) -> bool:
        """A running machine is paused by us for captures only."""
        running = self.record.phase is Phase.RUNNING
        return running and not self.ledger.held(Scope.CAPTURE)

    async def _tell_restored(self, kind: RestoreKind) -> None:
        """after_restore hooks; their errors are shown and change nothing."""
        for problem in await self._shared.extensions.after_restore(
            self.record, self.ledger, kind
        ):
            self.tell("ExtensionFailed", problem, warn=True)

    async def _tail(self) -> str:
        plan = self.record.plan
        return await self._shared.ports.disks.console_tail(plan.console) if plan else ""

    async def _end(self, failure: Failure) -> None:
        self.tell(failure.reason, failure.message, warn=True)
        await self.update(
            phase=Phase.FAILING,
            failure=failure,
            unwind_reason=Reason.PROCESS_EXITED.value,
        )

    def room_to_run(self) -> AbstractContextManager[None]:
        """For whoever is about to have it run. Exhausted."""
        if self.record.intent is Intent.RUNNING:
            return nullcontext()
        return self._shared.launcher.budget.room_for(self.record)

    def _may_launch_again(self) -> bool:
        return self.record.launch_retries < _LAUNCH_RETRIES

    async def _launch_again(self, failure: Failure, reason: Reason) -> None:
        """Clean up after a launch whose QEMU has ended, killed for want of memory perhaps, and
        try once more.
        """
        failure = endings.cut_off(failure)
        text = f"the machine is started once more: {failure.message}"
        self.tell("LaunchCutOff", text, warn=True)
        await self.update(
            phase=Phase.FAILING,
            failure=failure,
            unwind_reason=reason.value,
            launch_retries=self.record.launch_retries + 1,
        )

    async def _unwind(self, scope: Scope | None, reason: Reason) -> None:
        """Give back what is held. None: all of it, what belongs to the run first."""
        if scope is None:
            with suppress(StorageError):  # the next one says that it cannot be noted
                await self._release(Scope.RUNTIME, reason)
        errors = await self._release(scope, reason)
        if not errors:
            self.owed, self._clean_ups = "", 0
            return
        texts = "; ".join(
            e.text() if isinstance(e, DriverError) else repr(e) for e in errors
        )
        if all(is_extensions(held.key) for held in self.ledger.held(scope)):
            self._clean_ups += 1
            self.clean_again_at = time.monotonic() + backoff_s(self._clean_ups)
            told, self.owed = self.owed, texts
            if scope is Scope.RUNTIME:
                # The machine is down: only an extension's own clean-up is left, which is
                # tried again.
                if told != texts:
                    self.tell("ExtensionCleanupFailed", texts, warn=True)
                return
        raise CleanupError(
            f"{len(errors)} of the sandbox's resources could not be released: {texts}"
        )

    async def _release(self, scope: Scope | None, reason: Reason) -> list[Exception]:
        self._not_undone = 0

        async def undo(held: Held) -> None:
            try:
                await self._shared.undoer.undo(self.record, self.ledger, held, reason)
            except Exception:
                self._not_undone += 1
                raise

        return await self.ledger.release(scope, undo)

    async def _note(self, **changes: Any) -> None:
        """Say where an ending stands. It goes on if that cannot be stored: the wish is, and the
        next process begins again from that.
        """
        await self.decide(lambda _: changes, regardless=True)

    def _give_up(self) -> None:
        plan, held = self.record.plan, self.ledger.get(MACHINE)
        domains = {plan.domain} if plan else set()
        if held is not None:
            domains.add(held.data["domain"])
        for domain in domains:
            self._shared.ports.hypervisor.abandon(domain)

    def _going_down(self) -> bool:
        """There is a machine, and it is to be ended: nothing of it is to go on before."""
        asked = self.record.intent in {Intent.STOPPED, Intent.DELETED}
        ending = asked or self.record.phase is Phase.STOPPING
        return ending and self.ledger.get(MACHINE) is not None
