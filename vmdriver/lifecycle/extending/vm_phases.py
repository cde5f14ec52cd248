"""The neutral phases on the VM driver: what stands for what, and the calls that have to follow
the ledger, so that what runs forward in order is undone in reverse, hooks among it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vmdriver.errors import CleanupError
from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.extending.activation import Activation
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.draft import Draft
from vmdriver.lifecycle.extending.hooks import SandboxView
from vmdriver.lifecycle.extending.phase_runner import HOLD, PhaseRunner, Subject
from vmdriver.lifecycle.extending.phases import Extension, phases_of
from vmdriver.model.record import ExtensionState, SandboxRecord
from vmdriver.model.runs import RestoreKind
from vmdriver.model.spec import SandboxSpec

HOOKS_OF: Mapping[CallPoint, tuple[str, ...]] = {
    CallPoint.PREPARE_PLAN: ("configure_launch",),
    CallPoint.BEFORE_START: ("before_restore", "before_launch"),
    CallPoint.AFTER_READY: ("after_restore",),
    CallPoint.AFTER_STOP: ("after_launch_failed",),
    CallPoint.AFTER_DELETE: ("after_delete",),
    CallPoint.RECONCILE: ("before_restore", "after_restore"),
}
"""Where a phase and hooks of the VM driver are called at the same point. The others have no
hook: they are about requests, which upstream's hooks do not see.
"""
RUN = "run-phases:"
STAY = "stay-phases:"


Tell = Callable[[str, str], None]
"""Shows what went wrong in a phase that only reports: sandbox id, text."""


def _tell_nobody(_sandbox_id: str, _problem: str) -> None:
    pass


def view_of(spec: SandboxSpec) -> SandboxView:
    """What extensions may see."""
    return SandboxView(
        spec.id, spec.name, spec.workspace, spec.image, spec.labels, spec.resources
    )


def new_run(record: SandboxRecord, kind: RestoreKind | None) -> ExtensionState:
    """What is stored of the extensions when a run begins."""
    return record.extensions.model_copy(
        update={"ready_told": False, "returned": kind.value if kind else ""}
    )


class VmPhases:
    """Extensions that follow phases, on the sandboxes of one VM driver."""

    def __init__(
        self, runner: PhaseRunner, hooks: frozenset[str], tell: Tell = _tell_nobody
    ) -> None:
        self.runner = runner
        self._hooks = hooks
        self._tell = tell

    def subject(
        self,
        record: SandboxRecord,
        ledger: Ledger | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Subject:
        """As the runner needs it. Extensions that follow hooks are not in it."""
        state = record.extensions
        activation = Activation(
            tuple(name for name in state.active if name not in self._hooks),
            state.parameters,
        )
        returned = RestoreKind(state.returned) if state.returned else None
        return Subject(view_of(record.spec), activation, ledger, trace or {}, returned)

    def take_part(self, record: SandboxRecord) -> bool:
        """Whether any takes part, loaded or not."""
        return any(name not in self._hooks for name in record.extensions.active)

    async def ask(
        self,
        phase: CallPoint,
        record: SandboxRecord,
        ledger: Ledger | None,
        trace: Mapping[str, str],
        draft: Draft | None = None,
    ) -> None:
        """In order; the first error is raised."""
        await self.runner.ask(phase, self.subject(record, ledger, trace), draft)

    async def report(
        self,
        phase: CallPoint,
        record: SandboxRecord,
        ledger: Ledger,
        trace: Mapping[str, str] | None = None,
    ) -> None:
        """Errors are shown."""
        subject = self.subject(record, ledger, trace)
        for problem in await self.runner.tell(phase, subject):
            self._tell(record.id, problem)

    # --- what the ledger has to know

    async def note_create(self, record: SandboxRecord, ledger: Ledger) -> None:
        """From here on the end of the sandbox, or of its create, is told."""
        for name in self.subject(record).activation.active:
            await ledger.acquire(
                STAY + name, Scope.PERSISTENT, {"extension": name}, _nothing
            )

    async def begin_run(
        self, extension: Extension, record: SandboxRecord, ledger: Ledger
    ) -> None:
        """before_start; from here on the end of the run is told."""
        key, data = RUN + extension.name, {"extension": extension.name}
        await ledger.acquire(key, Scope.RUNTIME, data, _nothing)
        if CallPoint.BEFORE_START in phases_of(extension):
            subject = self.subject(record, ledger)
            await self.runner.call(extension, CallPoint.BEFORE_START, subject)

    async def undo(self, record: SandboxRecord, ledger: Ledger, held: Held) -> None:
        """Tell the extension of the end, once; then give back what it held. CleanupError when it
        is not loaded.
        """
        name, of_run = held.data["extension"], held.scope is Scope.RUNTIME
        extension = self.runner.extensions.get(name)
        if extension is None:
            raise CleanupError(
                f"extension {name!r} has something to undo but is not loaded",
                reason="ExtensionMissing",
                resolution="list it in the configuration's `extensions` and restart the "
                "driver",
            )
        phase = CallPoint.AFTER_STOP if of_run else CallPoint.AFTER_DELETE
        if phase is CallPoint.AFTER_DELETE and not record.extensions.accepted:
            phase = CallPoint.ON_CREATE_FAILED
        await self._tell_end((RUN if of_run else STAY) + name, phase, record, ledger)
        if held.key.startswith(HOLD):
            await self.runner.undo(self.subject(record, ledger), held)

    async def _tell_end(
        self, marker: str, phase: CallPoint, record: SandboxRecord, ledger: Ledger
    ) -> None:
        entry = ledger.get(marker)
        if entry is None or entry.data.get("told"):
            return
        name = entry.data["extension"]
        subject = self.subject(record, ledger)
        problem = await self.runner.tell_one(name, phase, subject)
        if problem:
            self._tell(record.id, problem)
        await ledger.remember(marker, {**entry.data, "told": True})


async def _nothing() -> None:
    """The entry has no effect of its own."""
