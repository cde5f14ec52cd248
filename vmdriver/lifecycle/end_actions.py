"""What follows an end: of the machine by itself, or one that was asked for."""

from __future__ import annotations

import asyncio

from vmdriver.host import facts
from vmdriver.lifecycle import endings
from vmdriver.lifecycle.hold import SandboxHold
from vmdriver.lifecycle.hooks import Reason
from vmdriver.lifecycle.hub import Deleted
from vmdriver.lifecycle.ledger import Scope
from vmdriver.lifecycle.ports import GuestReport
from vmdriver.model.phase import MachineState, Phase


class EndActions(SandboxHold):
    """Actions RECORD_END, RECOVER_LOST, CLEAN_UP, STOP and DELETE. Each may be repeated
    from its beginning.
    """

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
            "the machine was stopped in "
            f"{asyncio.get_running_loop().time() - begun:.2f} s",
        )

    async def _delete(self) -> None:
        if self.record.phase is not Phase.DELETING:
            await self.update(phase=Phase.DELETING, unwind_reason=Reason.STOPPED.value)
        await self._unwind(None, Reason.STOPPED)
        await self._shared.ports.records.remove(self.record.id)
        self._shared.forget(self.record.id)
        self._shared.hub.publish(Deleted(self.record.id))
        self.vanish()
