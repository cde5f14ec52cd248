"""What extensions that follow phases are told between the actions, and what they still owe."""

from __future__ import annotations

from vmdriver.lifecycle.engine.hold import SandboxHold
from vmdriver.lifecycle.extending import call_points as api
from vmdriver.model.phase import MachineState, Phase


class PhaseActions(SandboxHold):
    """Done when the sandbox is where it is meant to be."""

    async def _tell_phases(self, machine: MachineState) -> bool:
        """reconcile in a new process, after_ready in a new run. True: somebody was told."""
        phases, record = self._shared.extensions.phases, self.record
        if self.reconcile_due:
            await phases.report(api.CallPoint.RECONCILE, record, self.ledger)
            self.reconcile_due = False
            return True
        runs = record.phase is Phase.RUNNING and machine is MachineState.READY
        if not runs or record.extensions.ready_told or not phases.take_part(record):
            return False
        await phases.report(api.CallPoint.AFTER_READY, record, self.ledger)
        await self.update(
            extensions=self.record.extensions.model_copy(update={"ready_told": True})
        )
        return True
