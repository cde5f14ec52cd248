"""What follows an end that nobody asked for: of the machine, or of a launch under way."""

from __future__ import annotations

from dataclasses import dataclass

from vmdriver.host import facts
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.observer import Seen
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.launch import endings
from vmdriver.lifecycle.ports.host import Disks
from vmdriver.model.phase import MachineState, Phase
from vmdriver.model.record import Failure
from vmdriver.model.runs import Reason

_LAUNCH_RETRIES = 1


@dataclass(frozen=True)
class Ended:
    """Actions RECORD_END, RECOVER_LOST and CLEAN_UP. Each may be repeated from its beginning.
    `crash_restarts`: how often a machine that crashed is started again.
    """

    disks: Disks
    giving_back: GivingBack
    crash_restarts: int

    async def record_end(self, sandbox: Sandbox, seen: Seen) -> None:
        """Note why the machine has ended by itself; then it is cleaned up."""
        record, machine = sandbox.record, seen.machine
        tail = await self._tail(sandbox)
        retry = self._may_restart(sandbox)
        failure = endings.of_machine(machine, seen.report, record.phase, tail, retry)
        crashed = machine is MachineState.CRASHED and record.phase is Phase.LAUNCHING
        reason = Reason.PROCESS_EXITED
        if crashed and await self.launched_again(sandbox, failure, reason):
            return
        await _fail(sandbox, failure)

    async def recover_lost(self, sandbox: Sandbox, seen: Seen) -> None:
        """Its machine is not there: it is started again after a restart of the host, else it
        has crashed.
        """
        record = sandbox.record
        if record.host_boot_id != facts.boot_id():
            text = "the host was restarted; the machine is started again from its disk"
            sandbox.tell("HostRebooted", text)
            reason = Reason.PROCESS_EXITED.value
            await sandbox.update(phase=Phase.LAUNCHING, unwind_reason=reason)
            return
        failure = endings.of_machine(
            MachineState.ABSENT,
            seen.report,
            record.phase,
            "",
            self._may_restart(sandbox),
        )
        await _fail(sandbox, failure)

    async def clean_up(self, sandbox: Sandbox, _seen: Seen) -> None:
        """Give back what belonged to the run; then once more, or failed."""
        reason = Reason(sandbox.record.unwind_reason or Reason.PROCESS_EXITED)
        await self.giving_back.run(sandbox, reason)
        failure = sandbox.record.failure
        if failure is None or not failure.will_retry:
            await sandbox.update(phase=Phase.FAILED)
            return
        counted = 0 if failure.in_launch else 1
        await sandbox.update(
            phase=Phase.LAUNCHING,
            crash_restarts=sandbox.record.crash_restarts + counted,
        )

    async def launched_again(
        self, sandbox: Sandbox, failure: Failure, reason: Reason
    ) -> bool:
        """Have it cleaned up after a launch whose QEMU has ended, killed for want of memory
        perhaps, and tried once more. False: that was done already.
        """
        if sandbox.record.launch_retries >= _LAUNCH_RETRIES:
            return False
        failure = endings.cut_off(failure)
        text = f"the machine is started once more: {failure.message}"
        sandbox.tell("LaunchCutOff", text, warn=True)
        await sandbox.update(
            phase=Phase.FAILING,
            failure=failure,
            unwind_reason=reason.value,
            launch_retries=sandbox.record.launch_retries + 1,
        )
        return True

    async def not_ready(self, sandbox: Sandbox, timeout_s: float) -> None:
        """The guest has not started its supervisor in that time."""
        tail = await self._tail(sandbox)
        await _fail(sandbox, endings.not_ready(timeout_s, tail))

    def _may_restart(self, sandbox: Sandbox) -> bool:
        return sandbox.record.crash_restarts < self.crash_restarts

    async def _tail(self, sandbox: Sandbox) -> str:
        plan = sandbox.record.plan
        return await self.disks.console_tail(plan.console) if plan else ""


async def _fail(sandbox: Sandbox, failure: Failure) -> None:
    sandbox.tell(failure.reason, failure.message, warn=True)
    reason = Reason.PROCESS_EXITED.value
    await sandbox.update(phase=Phase.FAILING, failure=failure, unwind_reason=reason)
