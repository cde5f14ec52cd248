"""Calls extensions through the phases: in which order, with what time, what their errors mean,
and what is held for whom.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vmdriver.errors import CleanupError, ConfigError, DriverError, Refused
from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.extending.activation import (
    Activation,
    activate,
    check_registration,
    key_of,
    parse_parameters,
)
from vmdriver.lifecycle.extending.call_points import ENDING, HOLDING, SET_UP, CallPoint
from vmdriver.lifecycle.extending.calls import Calls
from vmdriver.lifecycle.extending.draft import Draft
from vmdriver.lifecycle.extending.hooks import SandboxView
from vmdriver.lifecycle.extending.phases import (
    Context,
    Extension,
    Hold,
    Keep,
    Until,
    phases_of,
)
from vmdriver.model.runs import RestoreKind

_audit = logging.getLogger("vmdriver.extension")
HOLD = "hold:"
_SCOPES = {Until.STOP: Scope.RUNTIME, Until.DELETE: Scope.PERSISTENT}
Directory = Callable[[str, str], Awaitable[Path]]
"""From sandbox id and extension name to the extension's own directory, which is there."""


@dataclass(frozen=True)
class Subject:
    """A sandbox as the runner needs it. `ledger` is None where there is none yet."""

    sandbox: SandboxView
    activation: Activation
    ledger: Ledger | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    restore: RestoreKind | None = None


class PhaseRunner:
    """All loaded extensions, in registration order, on one driver. `known`: every sandbox that
    extensions take part in, oldest first.
    """

    def __init__(
        self,
        extensions: Sequence[Extension],
        configs: Mapping[str, Mapping[str, Any]],
        supported: frozenset[CallPoint],
        directory: Directory,
        may_configure: frozenset[str] = frozenset(),
        of_base: frozenset[str] = frozenset(),
        calls: Calls | None = None,
        *,
        driver: str = "",
        known: Callable[[], Iterable[tuple[SandboxView, Activation]]] = tuple,
    ) -> None:
        check_registration(extensions)
        self.extensions = {e.name: e for e in extensions}
        self.keys = frozenset(key_of(e) for e in extensions)
        """What labels call them."""
        self.supported = supported
        self.driver, self.base_driver = driver, ""
        self._known = known
        self.may_configure, self._of_base = may_configure, of_base
        self._configs = {e.name: _configuration(e, configs) for e in extensions}
        self._directory = directory
        self._calls = calls or Calls()
        for extension in extensions:
            self._calls.observed_by(extension, self._configs[extension.name])

    def activate(self, sandbox: SandboxView, blocks: Mapping[str, Any]) -> Activation:
        """Who takes part. Refused, InvalidRequest."""
        return activate(
            self.extensions.values(),
            sandbox.labels,
            blocks,
            self.supported,
            self.may_configure,
            self._of_base,
        )

    # --- phases

    async def ask(
        self, phase: CallPoint, subject: Subject, draft: Draft | None = None
    ) -> None:
        """A set-up phase: in order, up to the first error, which is raised."""
        for extension in self._taking_part(subject, phase):
            arguments: tuple[Any, ...] = ()
            if draft is not None:
                draft.on_behalf_of(extension.name, phase)
                arguments = (draft,)
            await self.call(extension, phase, subject, *arguments)

    async def tell(self, phase: CallPoint, subject: Subject) -> list[str]:
        """A phase that reports: all are called; their errors as texts."""
        problems = []
        extensions = self._taking_part(subject, phase)
        for extension in reversed(extensions) if phase in ENDING else extensions:
            problem = await self.tell_one(extension.name, phase, subject)
            problems += [problem] if problem else []
        return problems

    async def tell_one(self, name: str, phase: CallPoint, subject: Subject) -> str:
        """The same for one extension, if it is loaded and has that phase. Its error as a text."""
        extension = self.extensions.get(name)
        if extension is None or phase not in phases_of(extension) & self.supported:
            return ""
        try:
            await self.call(extension, phase, subject)
        except DriverError as error:
            return error.text()
        return ""

    async def give_back(self, subject: Subject, scope: Scope | None) -> list[str]:
        """Undo what is held, in reverse order. What fails stays held; its errors as texts."""
        if subject.ledger is None:
            return []
        errors = await subject.ledger.release(
            scope, lambda held: self.undo(subject, held)
        )
        return [e.text() if isinstance(e, DriverError) else repr(e) for e in errors]

    def _taking_part(self, subject: Subject, phase: CallPoint) -> list[Extension]:
        active = subject.activation.active
        missing = [name for name in active if name not in self.extensions]
        if missing and phase in SET_UP:
            raise Refused(
                f"extension {missing[0]!r} takes part in this sandbox but is not loaded",
                reason="ExtensionMissing",
                resolution="list it in the configuration and restart the driver",
            )
        return [
            e
            for e in self.extensions.values()
            if e.name in active and phase in phases_of(e) & self.supported
        ]

    # --- one call

    async def call(
        self, extension: Extension, phase: CallPoint, subject: Subject, *arguments: Any
    ) -> None:
        """One extension, one phase. Its error is raised."""
        context = await self._context(extension, phase, subject)
        work = getattr(extension, phase.value)(context, *arguments)
        await self._calls.make(
            extension, phase.value, subject.sandbox, work, subject.trace
        )

    async def undo(self, subject: Subject, held: Held) -> None:
        """Give one hold back. CleanupError when its extension is not loaded."""
        name = held.data["extension"]
        extension = self.extensions.get(name)
        if extension is None:
            raise CleanupError(
                f"extension {name!r} has to give back {held.data['kind']} "
                f"{held.data['name']} and is not loaded",
                reason="ExtensionMissing",
                resolution="list it in the configuration and restart the driver",
            )
        ends = held.scope is Scope.RUNTIME
        phase = CallPoint.AFTER_STOP if ends else CallPoint.AFTER_DELETE
        context = await self._context(extension, phase, subject)
        work = extension.undo(context, _hold_of(held))
        await self._calls.make(extension, "undo", subject.sandbox, work)

    def _others(self, sandbox_id: str, extension: str) -> tuple[SandboxView, ...]:
        earlier = itertools.takewhile(lambda k: k[0].id != sandbox_id, self._known())
        return tuple(view for view, a in earlier if extension in a.active)

    async def _context(
        self, extension: Extension, phase: CallPoint, subject: Subject
    ) -> Context:
        sandbox, name = subject.sandbox, extension.name
        ledger = subject.ledger
        keep = _keeper(ledger, name) if ledger and phase in HOLDING else None
        entries = ledger.held() if ledger else ()
        log = logging.LoggerAdapter(
            _audit, {"sandbox": sandbox.id, "extension": name, "phase": phase.value}
        )
        given = subject.activation.parameters.get(name, {})
        return Context(
            phase=phase,
            sandbox=sandbox,
            driver=self.driver,
            base_driver=self.base_driver,
            config=self._configs[name],
            parameters=parse_parameters(extension, given),
            state_dir=await self._directory(sandbox.id, name) if ledger else Path(),
            log=log,
            trace=subject.trace,
            restore=subject.restore,
            held=tuple(
                _hold_of(h)
                for h in entries
                if h.key.startswith(HOLD) and h.data["extension"] == name
            ),
            keep=keep,
            look_around=lambda: self._others(sandbox.id, name),
        )


def holds_of(ledger: Ledger) -> list[Held]:
    """Everything that extensions hold, oldest first."""
    return [held for held in ledger.held() if held.key.startswith(HOLD)]


def _hold_of(held: Held) -> Hold:
    return Hold(held.data["kind"], held.data["name"], held.data["undo"])


def _keeper(ledger: Ledger, extension: str) -> Keep:
    async def keep(
        kind: str, name: str, undo_data: Mapping[str, Any], until: Until
    ) -> None:
        key = f"{HOLD}{extension}:{kind}:{name}"
        data = {
            "extension": extension,
            "kind": kind,
            "name": name,
            "undo": dict(undo_data),
        }
        if ledger.get(key) is not None:
            await ledger.remember(key, data)
            return
        await ledger.acquire(key, _SCOPES[until], data, _nothing)

    return keep


async def _nothing() -> None:
    """The extension acts afterwards; the entry has no effect of its own."""


def _configuration(
    extension: Extension, configs: Mapping[str, Mapping[str, Any]]
) -> Any:
    given = configs.get(extension.name, {})
    if extension.configuration is None:
        return given
    try:
        return extension.configuration.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"[extension.{extension.name}] {where}: {first['msg']}"
        ) from error
