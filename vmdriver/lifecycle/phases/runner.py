"""Calls extensions through the phases: in which order, with what time, what their errors mean,
and what is held for whom.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vmdriver.errors import CleanupError, ConfigError, DriverError, Refused
from vmdriver.lifecycle.extension_runner import check_names
from vmdriver.lifecycle.hooks import RestoreKind, SandboxView
from vmdriver.lifecycle.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.phases.activation import (
    Activation,
    activate,
    key_of,
    parse_parameters,
)
from vmdriver.lifecycle.phases.api import (
    ENDING,
    HOLDING,
    Call,
    Context,
    Extension,
    Hold,
    Keep,
    Phase,
    Until,
    phases_of,
)
from vmdriver.lifecycle.phases.mutation import Draft

_log = logging.getLogger(__name__)
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
    """All loaded extensions, in registration order, on one driver."""

    def __init__(
        self,
        extensions: Sequence[Extension],
        configs: Mapping[str, Mapping[str, Any]],
        supported: frozenset[Phase],
        directory: Directory,
        may_configure: frozenset[str] = frozenset(),
        of_base: frozenset[str] = frozenset(),
    ) -> None:
        check_names([(e.name, key_of(e)) for e in extensions])
        self.extensions = {e.name: e for e in extensions}
        self.supported = supported
        self.driver, self.base_driver = "", ""
        self.known: Callable[[], Iterable[tuple[SandboxView, Activation]]] = tuple
        """Every sandbox that extensions take part in, oldest first."""
        self.may_configure, self._of_base = may_configure, of_base
        self._configs = {e.name: _configuration(e, configs) for e in extensions}
        self._directory = directory

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
        self, phase: Phase, subject: Subject, draft: Draft | None = None
    ) -> None:
        """A set-up phase: in order, up to the first error, which is raised."""
        for extension in self._taking_part(subject, phase):
            arguments: tuple[Any, ...] = ()
            if draft is not None:
                draft.on_behalf_of(extension.name, phase)
                arguments = (draft,)
            await self._call(extension, phase, subject, *arguments)

    async def tell(self, phase: Phase, subject: Subject) -> list[str]:
        """A phase that reports: all are called; their errors as texts."""
        problems = []
        extensions = self._taking_part(subject, phase, strict=False)
        for extension in reversed(extensions) if phase in ENDING else extensions:
            try:
                await self._call(extension, phase, subject)
            except DriverError as error:
                problems.append(error.text())
        return problems

    async def give_back(self, subject: Subject, scope: Scope | None) -> list[str]:
        """Undo what is held, in reverse order. What fails stays held; its errors as texts."""
        if subject.ledger is None:
            return []
        errors = await subject.ledger.release(
            scope, lambda held: self._undo(subject, held)
        )
        return [e.text() if isinstance(e, DriverError) else repr(e) for e in errors]

    def _taking_part(
        self, subject: Subject, phase: Phase, *, strict: bool = True
    ) -> list[Extension]:
        active = subject.activation.active
        missing = [name for name in active if name not in self.extensions]
        if missing and strict:
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

    async def _call(
        self, extension: Extension, phase: Phase, subject: Subject, *arguments: Any
    ) -> None:
        context = await self._context(extension, phase, subject)
        method = getattr(extension, phase.value)
        await self._timed(extension, phase.value, subject, method(context, *arguments))

    async def _undo(self, subject: Subject, held: Held) -> None:
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
        phase = Phase.AFTER_STOP if ends else Phase.AFTER_DELETE
        context = await self._context(extension, phase, subject)
        work = extension.undo(context, _hold_of(held))
        await self._timed(extension, "undo", subject, work)

    async def _timed(
        self,
        extension: Extension,
        what: str,
        subject: Subject,
        work: Awaitable[None],
    ) -> None:
        begun, problem = time.monotonic(), ""
        try:
            async with asyncio.timeout(extension.timeout_s):
                await work
        except TimeoutError as error:
            problem = f"took longer than {extension.timeout_s:g} s"
            raise Refused(
                f"extension {extension.name!r}: {what} {problem}",
                reason="ExtensionTimedOut",
            ) from error
        except DriverError as error:
            problem = error.text()
            raise
        except Exception as error:
            problem = type(error).__name__
            _log.exception("extension %s failed in %s", extension.name, what)
            raise Refused(
                f"extension {extension.name!r} failed in {what}: {problem}",
                reason="ExtensionFailed",
            ) from error
        finally:
            call = Call(
                extension.name,
                what,
                subject.sandbox.id,
                subject.sandbox.workspace,
                time.monotonic() - begun,
                problem,
            )
            await self._tell_observers(call)

    async def _tell_observers(self, call: Call) -> None:
        _log.info(
            "%s: %s.%s took %.0f ms%s",
            call.sandbox_id,
            call.extension,
            call.phase,
            call.seconds * 1e3,
            f": {call.error}" if call.error else "",
        )
        for extension in self.extensions.values():
            if type(extension).observe is Extension.observe:
                continue
            try:
                async with asyncio.timeout(extension.timeout_s):
                    await extension.observe(call, self._configs[extension.name])
            except Exception:  # noqa: BLE001 - who watches must not disturb
                _log.exception("extension %s failed in observe", extension.name)

    def _others(self, sandbox_id: str, extension: str) -> tuple[SandboxView, ...]:
        earlier = itertools.takewhile(lambda k: k[0].id != sandbox_id, self.known())
        return tuple(view for view, a in earlier if extension in a.active)

    async def _context(
        self, extension: Extension, phase: Phase, subject: Subject
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
            others=self._others(sandbox.id, name),
            restore=subject.restore,
            held=tuple(
                _hold_of(h)
                for h in entries
                if h.key.startswith(HOLD) and h.data["extension"] == name
            ),
            keep=keep,
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
