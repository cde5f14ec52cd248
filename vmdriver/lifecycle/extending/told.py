"""What extensions are told between the actions."""

from __future__ import annotations

from vmdriver.lifecycle.engine.observer import Seen
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.model.phase import MachineState, Phase
from vmdriver.model.runs import RestoreKind


class Told:
    """Their errors are shown and change nothing."""

    def __init__(self, *, extensions: ExtensionRunner) -> None:
        self._extensions = extensions

    async def restored(self, sandbox: Sandbox, kind: RestoreKind) -> None:
        """after_restore."""
        await self._extensions.after_restore(sandbox.record, sandbox.ledger, kind)

    async def what_is_due(self, sandbox: Sandbox, seen: Seen) -> bool:
        """At rest: reconcile in a new process, after_ready in a new run. True: somebody was
        told.
        """
        extensions, record = self._extensions, sandbox.record
        if sandbox.reconcile_due:
            await extensions.report(CallPoint.RECONCILE, record, sandbox.ledger)
            sandbox.reconcile_due = False
            return True
        runs = record.phase is Phase.RUNNING and seen.machine is MachineState.READY
        if not runs or record.extensions.ready_told:
            return False
        if not extensions.take_part(record):
            return False
        await extensions.report(CallPoint.AFTER_READY, record, sandbox.ledger)
        told = sandbox.record.extensions.model_copy(update={"ready_told": True})
        await sandbox.update(extensions=told)
        return True
