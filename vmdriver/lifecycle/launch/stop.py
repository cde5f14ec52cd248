"""What follows an end: of the machine by itself, or one that was asked for."""

from __future__ import annotations

import asyncio
import logging

from vmdriver.errors import DriverError
from vmdriver.host import facts
from vmdriver.lifecycle.engine.hold import SandboxHold
from vmdriver.lifecycle.engine.ledger import Scope
from vmdriver.lifecycle.engine.resource import FROZEN
from vmdriver.lifecycle.launch import endings
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import DomainState, MachineState, Phase
from vmdriver.model.record import layers_of
from vmdriver.model.runs import Reason

_log = logging.getLogger(__name__)


class EndActions(SandboxHold):
    """Actions RECORD_END, RECOVER_LOST, CLEAN_UP, STOP and DELETE. Each may be repeated
    from its beginning.
    """

    async def _record_end(self, machine: MachineState, report: GuestReport) -> None:
        record = self.record
        retry = record.crash_restarts < self._shared.settings.crash_restarts
        tail = await self._tail()
        failure = endings.of_machine(machine, report, record.phase, tail, retry)
        crashed = machine is MachineState.CRASHED and record.phase is Phase.LAUNCHING
        if crashed and self._may_launch_again():
            await self._launch_again(failure, Reason.PROCESS_EXITED)
        else:
            await self._end(failure)

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
        await self._unwind(Reason(self.record.unwind_reason or Reason.PROCESS_EXITED))
        failure = self.record.failure
        if failure is not None and failure.will_retry:
            counted = 0 if failure.in_launch else 1
            await self.update(
                phase=Phase.LAUNCHING,
                crash_restarts=self.record.crash_restarts + counted,
            )
        else:
            await self.update(phase=Phase.FAILED)

    async def _stop(self, machine: MachineState) -> None:
        begun = asyncio.get_running_loop().time()
        # Frozen still, or not told yet what it must know: it may not answer.
        coming_back = self.record.phase is Phase.RESUMING
        if self.record.phase is not Phase.STOPPING:
            await self.note(phase=Phase.STOPPING, unwind_reason=Reason.STOPPED.value)
        plan = self.record.plan
        still = self.ledger.held(Scope.CAPTURE)
        # A guest that was frozen for a capture was flushed then.
        silent = coming_back or self.ledger.get(FROZEN) is not None
        if plan is not None and machine is MachineState.READY and not silent:
            await self._flush(plan.domain)
        if still:
            # Which layer it writes to can be seen only while it is there.
            await self._shared.capture.settle_layer(self, regardless=True)
        await self._unwind(Reason.STOPPED)
        if still:
            await self._shared.capture.abandon(self)
        self.merge_due = True
        kept = self.record.memory is not None and not self.record.memory.consumed
        await self.update(
            phase=Phase.SUSPENDED if kept else Phase.STOPPED,
            memory=self.record.memory if kept else None,
            failure=None,
            crash_restarts=0,
            note="",
        )
        self.tell(
            "Stopped",
            "the machine was stopped in "
            f"{asyncio.get_running_loop().time() - begun:.2f} s",
        )

    async def _flush(self, domain: str) -> None:
        grace_s = self._shared.settings.stop_grace_s
        try:
            state = await self._shared.ports.hypervisor.observe(domain)
            if state is not DomainState.RUNNING:
                return  # such as one that was being resumed: there is nobody to ask
            await self._shared.ports.guest.flush(domain, max(grace_s, 0.01))
        except DriverError as error:
            text = f"the guest did not flush its file systems: {error.text()}"
            self.tell("FlushFailed", text, warn=True)

    async def _delete(self) -> None:
        if self.record.phase is not Phase.DELETING or self.unsaved:
            await self.note(phase=Phase.DELETING, unwind_reason=Reason.STOPPED.value)
        await self._shared.giving_back.everything(self, Reason.STOPPED)
        # A launch that was cut off may have named layers and not got to making its own, and one
        # that could not be removed when the record left it is named by nobody. What others made
        # for it, a template or a source, is below all of its own: no record leaves that.
        own = await self._shared.ports.disks.layers(self.record.id)
        needless = layers_of(self.record).union(own)
        await self._shared.undoer.drop_layers(self.record.id, needless)
        await self.vanish(self._shared.forget)
