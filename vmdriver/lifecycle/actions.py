"""What a worker does to one sandbox: launch, confirm, note an end, stop, delete.

Each method is one row of the action column of model/phase.py. Each may be cut off
anywhere by a crash and is then begun again by the next process: the ledger says how far
it came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from vmdriver.errors import CleanupError, DriverError, HostError
from vmdriver.host import facts
from vmdriver.lifecycle import endings
from vmdriver.lifecycle.extension_runner import RUN, ExtensionRunner
from vmdriver.lifecycle.hooks import Reason, RestoreKind
from vmdriver.lifecycle.hub import Deleted, Hub
from vmdriver.lifecycle.launcher import Launcher, LaunchFailed
from vmdriver.lifecycle.ledger import Ledger, Scope
from vmdriver.lifecycle.ports import GuestReport
from vmdriver.lifecycle.settings import Settings
from vmdriver.lifecycle.state import SandboxState
from vmdriver.lifecycle.steps import MACHINE, Ports, Undoer
from vmdriver.model.condition import Progress
from vmdriver.model.ids import mark
from vmdriver.model.phase import DomainState, Intent, MachineState, Phase, machine_state
from vmdriver.model.record import Failure, SandboxRecord

_log = logging.getLogger(__name__)
_POLL_S = 0.03


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


class SandboxActions(SandboxState):
    """The actions; SandboxWorker decides which."""

    def __init__(self, record: SandboxRecord, ledger: Ledger, shared: Shared) -> None:
        super().__init__(record, shared.ports.records, shared.hub)
        self.ledger = ledger
        self._shared = shared
        self._wake = asyncio.Event()
        self._launch: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._adopted = record.phase is not Phase.RUNNING

    async def observe(self) -> tuple[MachineState, GuestReport]:
        """What libvirt and the guest say now. A machine from before a host reboot
        counts as absent.
        """
        plan = self.record.plan
        if plan is None or self.ledger.get(MACHINE) is None:
            return MachineState.ABSENT, GuestReport()
        domain = await self._shared.ports.hypervisor.observe(plan.domain)
        report = await self._shared.ports.disks.report(plan.disk("status").path)
        rebooted = self.record.host_boot_id != facts.boot_id()
        if (
            rebooted
            and domain in {DomainState.OFF, DomainState.CRASHED}
            and report.phase != "exited"
        ):
            domain = DomainState.ABSENT
        return machine_state(domain, report.phase), report

    async def _adopt(self) -> None:
        shared, record = self._shared, self.record
        try:
            await shared.extensions.before_restore(
                record, self.ledger, RestoreKind.ADOPTED
            )
        except DriverError as error:
            self.tell(error.reason, error.text(), warn=True)
        if (
            record.plan is not None
        ):  # whoever emptied the firewall while we were away did not mean to open it
            await shared.ports.network.load_rules(
                record.plan.network, mark(shared.settings.instance, record.id)
            )
        self.tell("Adopted", "the machine was running and goes on")
        for problem in await shared.extensions.after_restore(
            record, self.ledger, RestoreKind.ADOPTED
        ):
            self.tell("ExtensionFailed", problem, warn=True)

    # --- launch

    async def _launch_cancellably(self) -> None:
        """A stop or delete that comes meanwhile cancels the launch; steps that were
        begun are finished first.
        """
        self._launch = asyncio.create_task(self._launch_machine())
        try:
            await asyncio.shield(self._launch)
        except asyncio.CancelledError:
            self._launch.cancel()
            await asyncio.wait({self._launch})
            if self._task is not None and self._task.cancelling():
                raise
        except LaunchFailed as failed:
            failure = endings.provisioning_failed(failed.cause)
            self.tell(failure.reason, failure.message, warn=True)
            await self.update(
                phase=Phase.FAILING, failure=failure, unwind_reason=failed.blame.value
            )
        except DriverError:
            raise  # of our own files or an undo: tried again
        except Exception as error:  # noqa: BLE001 - a bug must not become an endless retry
            _log.exception("%s: the launch failed", self.record.id)
            failure = endings.provisioning_failed(
                HostError(f"internal error: {type(error).__name__}")
            )
            blame = Reason.LAUNCHER_SPAWN_FAILED.value
            await self.update(phase=Phase.FAILING, failure=failure, unwind_reason=blame)
        finally:
            self._launch = None

    async def _launch_machine(self) -> None:
        shared = self._shared
        again = self.record.launches > 0
        if self.record.intent is not Intent.RUNNING:
            return
        await self.update(phase=Phase.LAUNCHING)
        await self._unwind(
            Scope.RUNTIME, Reason(self.record.unwind_reason or Reason.STOPPED)
        )
        if again:
            try:
                await shared.extensions.before_restore(
                    self.record, self.ledger, RestoreKind.RELAUNCHED
                )
            except DriverError as error:
                raise LaunchFailed(error, Reason.BEFORE_LAUNCH_HOOK_FAILED) from error
        plan, draft = await shared.launcher.plan(self.record, self.ledger, self.tell)
        await self.update(
            plan=plan,
            lease=plan.network.lease,
            launches=self.record.launches + 1,
            host_boot_id=facts.boot_id(),
            unwind_reason="",
            boot_seconds={},
        )
        note = shared.launcher.accelerator.note()
        if note:
            self.tell("AcceleratorFallback", note, warn=True)
        await shared.launcher.start(self.record, self.ledger, plan, draft)
        self.tell(
            "Started",
            "the machine is started",
            Progress(active_step="starting_sandbox", active_detail="booting"),
        )
        if again:
            for problem in await shared.extensions.after_restore(
                self.record, self.ledger, RestoreKind.RELAUNCHED
            ):
                self.tell("ExtensionFailed", problem, warn=True)

    async def _await_ready(self) -> None:
        """Poll the status disk, which is cheap, until the guest says something; look at
        the domain once a second.
        """
        plan = self.record.plan
        assert plan is not None  # noqa: S101 - a machine without a plan is absent
        path, loop = plan.disk("status").path, asyncio.get_running_loop()
        deadline = loop.time() + self._shared.settings.boot_timeout_s
        look_again = loop.time() + 1.0
        while not self._shared.ports.disks.report_now(path).phase:
            if self._wake.is_set() or loop.time() > look_again:
                look_again = loop.time() + 1.0
                self._wake.clear()
                machine, _ = await self.observe()
                if (
                    machine is not MachineState.BOOTING
                    or self.record.intent is not Intent.RUNNING
                ):
                    return
            if loop.time() > deadline:
                await self._end(
                    endings.not_ready(
                        self._shared.settings.boot_timeout_s, await self._tail()
                    )
                )
                return
            await asyncio.sleep(_POLL_S)

    async def _confirm_running(self, report: GuestReport) -> None:
        self._adopted = True
        await self.update(
            phase=Phase.RUNNING, failure=None, boot_seconds=dict(report.stamps)
        )
        self.tell(
            "Running",
            "the supervisor has been started",
            Progress("starting_sandbox", "Sandbox ready"),
        )

    # --- ends

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

    async def _record_end(self, machine: MachineState, report: GuestReport) -> None:
        retry = self.record.crash_restarts < self._shared.settings.crash_restarts
        await self._end(
            endings.of_machine(
                machine, report, self.record.phase, await self._tail(), retry
            )
        )

    async def _recover_lost(self) -> None:
        if self.record.host_boot_id != facts.boot_id():
            self.tell(
                "HostRebooted",
                "the host was restarted; the machine is started again from its disk",
            )
            await self.update(
                phase=Phase.LAUNCHING, unwind_reason=Reason.PROCESS_EXITED.value
            )
            return
        retry = self.record.crash_restarts < self._shared.settings.crash_restarts
        await self._end(
            endings.of_machine(
                MachineState.ABSENT, GuestReport(), self.record.phase, "", retry
            )
        )

    async def _clean_up(self) -> None:
        await self._unwind(
            Scope.RUNTIME, Reason(self.record.unwind_reason or Reason.PROCESS_EXITED)
        )
        failure = self.record.failure
        if failure is not None and failure.will_retry:
            await self.update(
                phase=Phase.LAUNCHING, crash_restarts=self.record.crash_restarts + 1
            )
        else:
            await self.update(phase=Phase.FAILED)

    async def _stop(self, machine: MachineState) -> None:
        begun = asyncio.get_running_loop().time()
        if self.record.phase is not Phase.STOPPING:
            await self.update(phase=Phase.STOPPING, unwind_reason=Reason.STOPPED.value)
        plan = self.record.plan
        if plan is not None and machine is MachineState.READY:
            flushed = await self._shared.ports.hypervisor.flush(
                plan.domain, self._shared.settings.stop_grace_s
            )
            if not flushed:
                self.tell(
                    "FlushFailed",
                    "the guest did not flush its file systems in time",
                    warn=True,
                )
        await self._unwind(Scope.RUNTIME, Reason.STOPPED)
        await self.update(phase=Phase.STOPPED, failure=None, crash_restarts=0)
        self.tell(
            "Stopped",
            f"the machine was stopped in {asyncio.get_running_loop().time() - begun:.2f} s",
        )

    async def _delete(self) -> None:
        if self.record.phase is not Phase.DELETING:
            await self.update(phase=Phase.DELETING, unwind_reason=Reason.STOPPED.value)
        await self._unwind(None, Reason.STOPPED)
        await self._shared.ports.records.remove(self.record.id)
        self._shared.forget(self.record.id)
        self._shared.hub.publish(Deleted(self.record.id))
        self.vanish()

    async def _unwind(self, scope: Scope | None, reason: Reason) -> None:
        errors = await self.ledger.release(
            scope,
            lambda held: self._shared.undoer.undo(
                self.record, self.ledger, held, reason
            ),
        )
        if not errors:
            return
        texts = "; ".join(
            e.text() if isinstance(e, DriverError) else repr(e) for e in errors
        )
        if scope is Scope.RUNTIME and all(
            held.key.startswith(RUN) for held in self.ledger.held(scope)
        ):
            # Only an extension's own clean-up is left. The machine is down; that one is
            # tried again at the next chance.
            self.tell("ExtensionCleanupFailed", texts, warn=True)
            return
        raise CleanupError(
            f"{len(errors)} of the sandbox's resources could not be released: {texts}"
        )
