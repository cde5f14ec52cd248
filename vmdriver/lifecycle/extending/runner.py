"""Calls extensions on the VM driver's sandboxes, those that follow hooks and those that follow
phases side by side: who is active, in which order, and what their errors mean.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from vmdriver.errors import CleanupError, DriverError, Refused
from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.extending.activation import (
    Activation,
    Registered,
    activate,
    check_registration,
    parse_parameters,
)
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.calls import Calls
from vmdriver.lifecycle.extending.hooks import (
    EnvironmentDraft,
    HookContext,
    LifecycleExtension,
    PlanDraft,
    SandboxView,
)
from vmdriver.lifecycle.extending.phase_runner import HOLD, Directory, PhaseRunner
from vmdriver.lifecycle.extending.phases import Extension
from vmdriver.lifecycle.extending.plan_changes import shape
from vmdriver.lifecycle.extending.vm_phases import RUN as RUN_PHASES
from vmdriver.lifecycle.extending.vm_phases import STAY as STAY_PHASES
from vmdriver.lifecycle.extending.vm_phases import Tell, VmPhases, view_of
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import Change, SandboxRecord
from vmdriver.model.runs import Reason, RestoreKind
from vmdriver.model.spec import SandboxSpec

RUN = "launch-hook:"
STAY = "delete-hook:"
PREFIXES = (RUN, STAY, RUN_PHASES, STAY_PHASES, HOLD)
"""Of keys in ledgers."""


def is_extensions(key: str) -> bool:
    """Whether a ledger entry is an extension's, not the machine's."""
    return key.startswith(PREFIXES)


class ExtensionRunner:
    """All installed extensions, in registration order. `may_configure`: those that requests may
    give parameters to. `driver`: the name that the gateway sees. `known`: every sandbox that is not
    going, oldest first. `tell` shows what went wrong where nothing is refused any more.
    """

    def __init__(
        self,
        extensions: Sequence[Registered],
        configs: Mapping[str, Mapping[str, Any]],
        directory: Directory,
        may_configure: frozenset[str] = frozenset(),
        *,
        driver: str = "",
        known: Callable[[], Iterable[SandboxRecord]] = tuple,
        tell: Tell = lambda _id, _problem: None,
    ) -> None:
        check_registration(extensions)
        self._extensions = {extension.name: extension for extension in extensions}
        self._configs = configs
        self._directory = directory
        self._calls = Calls()
        hooks = {e.name for e in extensions if isinstance(e, LifecycleExtension)}
        runner = PhaseRunner(
            [e for e in extensions if isinstance(e, Extension)],
            configs,
            frozenset(CallPoint),
            directory,
            may_configure,
            calls=self._calls,
            driver=driver,
            known=lambda: map(self._taking_part, known()),
        )
        self.phases = VmPhases(runner, frozenset(hooks), tell)

    def _taking_part(self, record: SandboxRecord) -> tuple[SandboxView, Activation]:
        subject = self.phases.subject(record)
        return subject.sandbox, subject.activation

    def loaded(self) -> list[Registered]:
        """In registration order."""
        return list(self._extensions.values())

    def activate(self, spec: SandboxSpec) -> Activation:
        """Who will accompany this sandbox; stored at create. Refused, InvalidRequest."""
        runner = self.phases.runner
        blocks = spec.driver_config.get("extensions", {})
        return activate(
            self._extensions.values(),
            spec.labels,
            blocks,
            runner.supported,
            runner.may_configure,
        )

    def _active(self, record: SandboxRecord) -> list[Registered]:
        missing = set(record.extensions.active) - set(self._extensions)
        if missing:
            raise Refused(
                f"extension {sorted(missing)[0]!r} takes part in this sandbox but "
                "is not loaded",
                reason="ExtensionMissing",
                resolution=(
                    "list it in the configuration's `extensions` and restart the driver"
                ),
            )
        return [
            e for e in self._extensions.values() if e.name in record.extensions.active
        ]

    def _active_hooks(self, record: SandboxRecord) -> list[LifecycleExtension]:
        return [e for e in self._active(record) if isinstance(e, LifecycleExtension)]

    def check_changes(self, changes: Sequence[Change]) -> PlanDraft:
        """The plan's draft as they make it. Refused, as far as that is known before the launch."""
        draft = PlanDraft()
        for change in changes:
            draft.on_behalf_of(change.extension)
            shape(draft, (change,))
        return draft

    async def _context(
        self,
        extension: LifecycleExtension,
        record: SandboxRecord,
        ledger: Ledger,
        key: str,
        **more: Any,
    ) -> HookContext:
        held, name = ledger.get(key), extension.name
        given = record.extensions.parameters.get(name, {})
        values: dict[str, Any] = {
            "saved": held.data.get("saved", {}) if held else {},
            **more,
        }
        return HookContext(
            sandbox=view_of(record.spec),
            state_dir=await self._directory(record.id, name),
            config=self._configs.get(name, {}),
            parameters=parse_parameters(extension, given),
            **values,
        )

    async def _call(
        self,
        extension: LifecycleExtension,
        hook: str,
        record: SandboxRecord,
        work: Awaitable[None],
    ) -> None:
        await self._calls.make(extension, hook, view_of(record.spec), work)

    async def configure_launch(
        self, record: SandboxRecord, ledger: Ledger
    ) -> PlanDraft:
        """Let every active extension shape the draft; what began is in the ledger. What phases
        changed was decided at create.
        """
        draft = PlanDraft()
        for extension in self._active(record):
            draft.on_behalf_of(extension.name)
            if isinstance(extension, Extension):
                changes = record.extensions.changes
                shape(draft, (c for c in changes if c.extension == extension.name))
                continue
            await self._note_run(ledger, extension.name)
            context = await self._run_context(extension, record, ledger)
            work = extension.configure_launch(context, draft)
            await self._call(extension, "configure_launch", record, work)
        return draft

    async def before_launch(
        self, record: SandboxRecord, ledger: Ledger, plan: LaunchPlan, draft: PlanDraft
    ) -> None:
        """Let every active extension allocate; environment that they add is in the
        draft.
        """
        for extension in self._active(record):
            if isinstance(extension, Extension):
                await self.phases.begin_run(extension, record, ledger)
                continue
            draft.on_behalf_of(extension.name)
            if self.phases.take_part(record):
                # It was noted before those that follow phases allocated anything.
                await ledger.move_to_end(RUN + extension.name)
            context = await self._run_context(extension, record, ledger)
            hook = extension.before_launch(context, plan, EnvironmentDraft(draft))
            await self._call(extension, "before_launch", record, hook)

    async def before_restore(
        self, record: SandboxRecord, ledger: Ledger, kind: RestoreKind
    ) -> None:
        """In order; the first error is raised. Where no before_launch follows, those that follow
        phases are asked here.
        """
        resumes = kind in {RestoreKind.RESUMED, RestoreKind.SNAPSHOT}
        notes = kind not in {RestoreKind.ADOPTED, RestoreKind.RELAUNCHED}
        for extension in self._active(record):
            if isinstance(extension, Extension):
                if resumes:
                    await self.phases.begin_run(extension, record, ledger)
                continue
            if notes:
                await self._note_run(ledger, extension.name)
            context = await self._saving_context(extension, record, ledger)
            work = extension.before_restore(context, kind)
            await self._call(extension, "before_restore", record, work)

    async def before_capture(
        self,
        record: SandboxRecord,
        ledger: Ledger,
        hook: str,
        call: Callable[[LifecycleExtension, HookContext], Awaitable[None]],
    ) -> None:
        """before_suspend, before_snapshot and before_fork: in order; the first error is
        raised, and is a veto.
        """
        for extension in self._active_hooks(record):
            context = await self._saving_context(extension, record, ledger)
            await self._call(extension, hook, record, call(extension, context))

    def saved(self, record: SandboxRecord, ledger: Ledger) -> dict[str, Any]:
        """What each extension of this sandbox has saved."""
        states = {n: _saved(ledger, STAY + n) for n in record.extensions.active}
        return {name: dict(state) for name, state in states.items() if state}

    async def _note_run(self, ledger: Ledger, name: str) -> None:
        data = {"extension": name, "saved": dict(_saved(ledger, STAY + name))}
        await ledger.acquire(
            STAY + name, Scope.PERSISTENT, {"extension": name}, _nothing
        )
        await ledger.acquire(RUN + name, Scope.RUNTIME, data, _nothing)

    async def _run_context(
        self, extension: LifecycleExtension, record: SandboxRecord, ledger: Ledger
    ) -> HookContext:
        save = _saver(ledger, extension.name)
        key = RUN + extension.name
        return await self._context(extension, record, ledger, key, save=save)

    async def _saving_context(
        self, extension: LifecycleExtension, record: SandboxRecord, ledger: Ledger
    ) -> HookContext:
        save = _saver(ledger, extension.name)
        key = STAY + extension.name
        return await self._context(extension, record, ledger, key, save=save)

    async def after_restore(
        self, record: SandboxRecord, ledger: Ledger, kind: RestoreKind
    ) -> list[str]:
        """In order; errors are returned as texts for events."""
        problems = []
        for extension in self._active_hooks(record):
            context = await self._context(
                extension, record, ledger, STAY + extension.name
            )
            work = extension.after_restore(context, kind)
            try:
                await self._call(extension, "after_restore", record, work)
            except DriverError as error:
                problems.append(error.text())
        return problems

    async def undo(
        self, record: SandboxRecord, ledger: Ledger, held: Held, reason: Reason
    ) -> None:
        """What stands behind a ledger entry of an extension. CleanupError when the extension
        is not loaded.
        """
        if not held.key.startswith((RUN, STAY)):
            await self.phases.undo(record, ledger, held)
            return
        name = held.data["extension"]
        extension = self._extensions.get(name)
        if not isinstance(extension, LifecycleExtension):
            raise CleanupError(
                f"extension {name!r} has something to undo but is not loaded",
                reason="ExtensionMissing",
                resolution=(
                    "list it in the configuration's `extensions` and restart the driver"
                ),
            )
        saved = {**_saved(ledger, STAY + name), **_saved(ledger, RUN + name)}
        context = await self._context(extension, record, ledger, held.key, saved=saved)
        if held.key.startswith(RUN):
            hook, work = (
                "after_launch_failed",
                extension.after_launch_failed(context, reason),
            )
        else:
            hook, work = "after_delete", extension.after_delete(context)
        await self._call(extension, hook, record, work)


async def _nothing() -> None:
    """The hook itself runs after its entry is durable; the entry has no effect of its
    own.
    """


def _saved(ledger: Ledger, key: str) -> Mapping[str, Any]:
    held = ledger.get(key)
    return held.data.get("saved", {}) if held else {}


def _saver(ledger: Ledger, name: str) -> Callable[[Mapping[str, Any]], Awaitable[None]]:
    """State goes into both entries: the run's, and the sandbox's for after_delete."""

    async def save(state: Mapping[str, Any]) -> None:
        for key in (STAY + name, RUN + name):
            if ledger.get(key) is not None:
                await ledger.remember(key, {"extension": name, "saved": dict(state)})

    return save
