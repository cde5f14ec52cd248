"""What extensions that follow phases are told between the actions, and what they still owe."""

from __future__ import annotations

import time

from vmdriver.lifecycle.engine.hold import SandboxHold
from vmdriver.lifecycle.engine.ledger import Held, Scope
from vmdriver.lifecycle.extending import call_points as api
from vmdriver.model.phase import Intent, MachineState, Phase
from vmdriver.model.runs import Reason

_DOWN = {Phase.STOPPED, Phase.SUSPENDED, Phase.FAILED}


class PhaseActions(SandboxHold):
    """Done when the sandbox is where it is meant to be."""

    async def _tell_phases(self, machine: MachineState) -> bool:
        """reconcile in a new process, after_ready in a new run. True: somebody was told."""
        phases, record = self._shared.extensions.phases, self.record
        if self.reconcile_due:
            await phases.report(api.Phase.RECONCILE, record, self.ledger)
            self.reconcile_due = False
            return True
        runs = record.phase is Phase.RUNNING and machine is MachineState.READY
        if not runs or record.extensions.ready_told or not phases.take_part(record):
            return False
        await phases.report(api.Phase.AFTER_READY, record, self.ledger)
        await self.update(
            extensions=self.record.extensions.model_copy(update={"ready_told": True})
        )
        return True

    def owes(self, entry: Held) -> bool:
        """Whether an extension's entry should have been given back by now."""
        if self.record.intent is Intent.DELETED:
            return bool(self.owed)
        return entry.scope is Scope.RUNTIME and self.record.phase in _DOWN

    async def _clean_again(self) -> None:
        """Try once more what an extension could not give back after the run, if it is time."""
        owed = self.record.phase in _DOWN and self.ledger.held(Scope.RUNTIME)
        if owed and time.monotonic() >= self.clean_again_at:
            reason = self.record.unwind_reason or Reason.STOPPED
            await self._unwind(Scope.RUNTIME, Reason(reason))
