"""Calls extensions, those that follow hooks and those that follow phases side by side: in which
order, what their errors mean, and what is given back.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from vmdriver.errors import ConfigError, DriverError, Refused
from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.extending.activation import (
    activate,
    check_registration,
    key_of,
    parse_parameters,
)
from vmdriver.lifecycle.extending.by_hooks import Capture
from vmdriver.lifecycle.extending.call_points import ENDING, SET_UP, CallPoint
from vmdriver.lifecycle.extending.calls import Calls
from vmdriver.lifecycle.extending.draft import Draft, PlanDraft
from vmdriver.lifecycle.extending.hooks import SandboxView
from vmdriver.lifecycle.extending.notes import HOOKS, Mark, Notes, is_hold, meaning
from vmdriver.lifecycle.extending.participants import Participant, Site
from vmdriver.lifecycle.extending.subject import Activation, Subject
from vmdriver.model.mistakes import first_mistake
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason, RestoreKind

R = TypeVar("R")
Trace = Mapping[str, str]
SubjectOf = Callable[[R, Ledger | None, Trace | None], Subject]
Directory = Callable[[str, str], Awaitable[Path]]
"""From sandbox id and extension name to the extension's own directory, which is there."""


class NotLoaded(Refused):
    """An extension is needed that this driver does not have."""

    reason = "ExtensionMissing"

    def __init__(self, name: str, why: str = "takes part in this sandbox") -> None:
        text = f"extension {name!r} {why} but is not loaded"
        resolution = (
            "list it in the configuration's `extensions` and restart the driver"
        )
        super().__init__(text, resolution=resolution)


class Runner(Generic[R]):
    """All loaded extensions, in registration order, on one driver, of whose records `subject_of`
    makes what extensions see.

    `configs`: the operator's tables by extension. `may_configure`: those that requests may give
    parameters to. `of_base`: label keys that are for a driver behind this one. `names`: what the
    gateway calls this driver, and the driver behind it, as far as it is known. `known`: every
    sandbox that is not going, oldest first. `tell` shows an error that changes nothing, by the
    sandbox's id.
    """

    def __init__(
        self,
        participants: Sequence[Participant],
        configs: Mapping[str, Mapping[str, Any]],
        directory: Directory,
        may_configure: frozenset[str] = frozenset(),
        *,
        subject_of: SubjectOf[R],
        names: Callable[[], tuple[str, str]] = lambda: ("", ""),
        known: Callable[[], Iterable[R]] = tuple,
        tell: Callable[[str, str], None] = lambda _id, _problem: None,
        supported: frozenset[CallPoint] = frozenset(CallPoint),
        of_base: frozenset[str] = frozenset(),
    ) -> None:
        check_registration(participants)
        self.participants = {p.name: p for p in participants}
        self.keys = frozenset(key_of(p.extension) for p in participants)
        """What labels call them."""
        self.may_configure, self.supported = may_configure, supported
        self._lacking = frozenset(CallPoint) - supported
        self.names, self._tell, self._of_base = names, tell, of_base
        self._subject_of, self._known, self._directory = subject_of, known, directory
        self._configs = {p.name: _configuration(p, configs) for p in participants}
        observed = [(p.observer, self._configs[p.name]) for p in participants]
        self._calls = Calls([(o, config) for o, config in observed if o is not None])

    def activate(self, labels: Mapping[str, str], blocks: Any) -> Activation:
        """Who will accompany a sandbox with these policy-stamped labels and that block of the
        request's own; stored at create. Refused, InvalidRequest.
        """
        found, may = self.participants.values(), self.may_configure
        return activate(found, labels, blocks, self.supported, may, self._of_base)

    def take_part(self, record: R) -> bool:
        """Whether anybody has a part in requests: who follows phases, or is not loaded."""
        active = self._subject_of(record, None, None).activation.active
        loaded = (self.participants.get(name) for name in active)
        return any(p is None or p.language != HOOKS for p in loaded)

    # --- call points that every driver has

    async def ask(
        self,
        point: CallPoint,
        record: R,
        ledger: Ledger | None = None,
        trace: Trace | None = None,
        draft: Draft | None = None,
    ) -> None:
        """In order, up to the first error, which is raised. NotLoaded where something is set up."""
        subject = self._subject_of(record, ledger, trace)
        drafts = () if draft is None else (draft,)
        for participant in self._taking_part(subject, everybody=point in SET_UP):
            await self._call(participant, point, subject, *drafts)

    async def report(
        self,
        point: CallPoint,
        record: R,
        ledger: Ledger | None = None,
        trace: Trace | None = None,
    ) -> None:
        """All are called, in reverse where something ends; their errors are shown."""
        subject = self._subject_of(record, ledger, trace)
        found = self._taking_part(subject, everybody=False)
        await self._tell_each(found[::-1] if point in ENDING else found, point, subject)

    async def give_back(
        self, record: R, ledger: Ledger, scope: Scope | None
    ) -> list[str]:
        """Undo what is held, in reverse order. What fails stays held; its errors as texts."""
        errors = await ledger.release(
            scope, lambda held: self.undo(record, ledger, held, Reason.STOPPED)
        )
        return [e.text() if isinstance(e, DriverError) else repr(e) for e in errors]

    async def undo(self, record: R, ledger: Ledger, held: Held, reason: Reason) -> None:
        """What stands behind an extension's ledger entry. NotLoaded."""
        name, owed = held.data["extension"], "something to undo"
        participant = self.participants.get(name)
        if participant is None or participant.language != meaning(held.key)[0]:
            if is_hold(held):
                owed = f"to give back {held.data['kind']} {held.data['name']}"
            raise NotLoaded(name, f"has {owed}")
        subject = self._subject_of(record, ledger, None)
        await participant.undo(self._site(participant, subject), held, reason)

    # --- call points of a machine

    async def note_create(self, record: R, ledger: Ledger) -> None:
        """From here on the end of the sandbox, or of its create, is told."""
        await self._each("note_create", record, ledger)

    async def configure_launch(self, record: R, ledger: Ledger) -> PlanDraft:
        """Everybody shapes the draft; what began is in the ledger."""
        draft = PlanDraft()
        await self._each("configure_launch", record, ledger, draft)
        return draft

    async def before_launch(
        self, record: R, ledger: Ledger, plan: LaunchPlan
    ) -> dict[str, tuple[str, str]]:
        """Everybody allocates. What of the environment extensions have asked for by now: values by
        name, each with the extension.
        """
        draft = PlanDraft()
        for name, extension in plan.environment_by.items():
            draft.on_behalf_of(extension)
            draft.set_environment(name, plan.environment[name])
        await self._each("before_launch", record, ledger, plan, draft)
        return draft.collected("env")

    async def before_restore(
        self, record: R, ledger: Ledger, kind: RestoreKind
    ) -> None:
        """In order; the first error is raised."""
        await self._each("before_restore", record, ledger, kind)

    async def before_capture(
        self, record: R, ledger: Ledger, hook: str, call: Capture
    ) -> None:
        """before_suspend, before_snapshot and before_fork: the first error is raised, and is a
        veto.
        """
        await self._each("before_capture", record, ledger, hook, call)

    async def after_restore(self, record: R, ledger: Ledger, kind: RestoreKind) -> None:
        """In order; errors are shown."""
        subject = self._subject_of(record, ledger, None)
        found = self._taking_part(subject)
        await self._tell_each(found, "after_restore", subject, kind)

    def saved(self, record: R, ledger: Ledger) -> dict[str, Any]:
        """What each extension of this sandbox has saved."""
        active = self._subject_of(record, None, None).activation.active
        states = {n: Notes(ledger, n, HOOKS).saved(Mark.STAY) for n in active}
        return {name: state for name, state in states.items() if state}

    # --- one call

    async def _each(
        self, moment: str, record: R, ledger: Ledger, *arguments: Any
    ) -> None:
        subject = self._subject_of(record, ledger, None)
        for participant in self._taking_part(subject):
            await self._call(participant, moment, subject, *arguments)

    async def _tell_each(
        self, found: Iterable[Participant], moment: str, subject: Subject, *more: Any
    ) -> None:
        for participant in found:
            try:
                await self._call(participant, moment, subject, *more)
            except DriverError as error:
                self._tell(subject.sandbox.id, error.text())

    def _taking_part(
        self, subject: Subject, *, everybody: bool = True
    ) -> list[Participant]:
        active = subject.activation.active
        missing = set(active) - set(self.participants)
        if missing and everybody:
            raise NotLoaded(min(missing))
        return [p for p in self.participants.values() if p.name in active]

    async def _call(
        self, participant: Participant, moment: str, subject: Subject, *arguments: Any
    ) -> None:
        part = participant.part(moment)
        if part is not None and moment not in self._lacking:
            await part(self._site(participant, subject), *arguments)

    def _site(self, participant: Participant, subject: Subject) -> Site:
        sandbox, name, ledger = subject.sandbox, participant.name, subject.ledger
        extension, make = participant.extension, self._calls.make

        async def given() -> tuple[Any, Path]:
            said = subject.activation.parameters.get(name, {})
            parameters = parse_parameters(extension, said)
            own = await self._directory(sandbox.id, name) if ledger else Path()
            return parameters, own

        return Site(
            subject,
            self._configs[name],
            given,
            Notes(ledger, name, participant.language),
            *self.names(),
            others=lambda: self._others(sandbox.id, name),
            call=lambda what, work: make(extension, what, sandbox, work, subject.trace),
            tell=lambda problem: self._tell(sandbox.id, problem),
        )

    def _others(self, sandbox_id: str, extension: str) -> tuple[SandboxView, ...]:
        subjects = (self._subject_of(record, None, None) for record in self._known())
        earlier = itertools.takewhile(lambda s: s.sandbox.id != sandbox_id, subjects)
        return tuple(s.sandbox for s in earlier if extension in s.activation.active)


ExtensionRunner = Runner[SandboxRecord]
"""On the VM driver."""


def _configuration(
    participant: Participant, configs: Mapping[str, Mapping[str, Any]]
) -> Any:
    given, model = configs.get(participant.name, {}), participant.configuration
    if model is None:
        return given
    try:
        return model.model_validate(given)
    except ValidationError as error:
        where, what = first_mistake(error)
        text = f"[extension.{participant.name}] {where}: {what}"
        raise ConfigError(text) from error
