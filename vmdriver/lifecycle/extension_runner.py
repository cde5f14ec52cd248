"""Calls extensions: who is active, in which order, with what time, and what their
errors mean.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from vmdriver.errors import CleanupError, ConfigError, DriverError, Refused
from vmdriver.lifecycle.hooks import (
    EnvironmentDraft,
    HookContext,
    LifecycleExtension,
    OnRequest,
    PlanDraft,
    Reason,
    RestoreKind,
    SandboxView,
)
from vmdriver.lifecycle.ledger import Held, Ledger, Scope
from vmdriver.lifecycle.ports import Disks
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord
from vmdriver.model.spec import SandboxSpec

_log = logging.getLogger(__name__)
_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,64}")
_YES = {"enabled", "enable", "requested", "request", "1", "true", "yes", "y", "on"}
LABEL_PREFIX = "openshell.io/extension."
RUN = "launch-hook:"
STAY = "delete-hook:"


def check_names(names: Sequence[tuple[str, str]]) -> None:
    """Of extensions and the keys that labels call them by. ConfigError for a bad or doubled
    one.
    """
    seen: set[str] = set()
    for name, key in names:
        for text in (name, key):
            if not _NAME.fullmatch(text):
                raise ConfigError(
                    f"extension name or key {text!r} is not made of A-Z a-z 0-9 . - _"
                )
        if name in seen:
            raise ConfigError(f"extension {name!r} is listed twice")
        seen.add(name)


def check_registration(extensions: Sequence[LifecycleExtension]) -> None:
    """ConfigError for a bad or doubled name."""
    check_names([(e.name, label_key(e) or e.name) for e in extensions])


def is_affirmative(value: str) -> bool:
    """Whether a label's value says yes; anything unrecognised means no."""
    return value.strip().lower() in _YES


def is_active(extension: LifecycleExtension, labels: Mapping[str, str]) -> bool:
    """Decided by the label's value; anything unrecognised means no."""
    if not isinstance(extension.activation, OnRequest):
        return True
    return is_affirmative(labels.get(LABEL_PREFIX + extension.activation.key, ""))


def view_of(spec: SandboxSpec) -> SandboxView:
    """What extensions may see."""
    return SandboxView(
        spec.id, spec.name, spec.workspace, spec.image, spec.labels, spec.resources
    )


def label_key(extension: LifecycleExtension) -> str:
    """What labels call it; "" when it is active for every sandbox."""
    kind = extension.activation
    return kind.key if isinstance(kind, OnRequest) else ""


class ExtensionRunner:
    """All installed extensions, in registration order."""

    def __init__(
        self,
        extensions: Sequence[LifecycleExtension],
        configs: Mapping[str, Mapping[str, Any]],
        disks: Disks,
    ) -> None:
        check_registration(extensions)
        self._extensions = {extension.name: extension for extension in extensions}
        self._configs = configs
        self._disks = disks

    def loaded(self) -> list[LifecycleExtension]:
        """In registration order."""
        return list(self._extensions.values())

    def active_for(self, spec: SandboxSpec) -> tuple[str, ...]:
        """Names of the extensions that will accompany this sandbox; stored at create."""
        return tuple(
            e.name for e in self._extensions.values() if is_active(e, spec.labels)
        )

    def _active(self, record: SandboxRecord) -> list[LifecycleExtension]:
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

    async def _context(
        self, record: SandboxRecord, name: str, ledger: Ledger, key: str, **more: Any
    ) -> HookContext:
        held = ledger.get(key)
        return HookContext(
            sandbox=view_of(record.spec),
            state_dir=await self._disks.extension_directory(record.id, name),
            config=self._configs.get(name, {}),
            saved=held.data.get("saved", {}) if held else {},
            **more,
        )

    async def _call(
        self,
        extension: LifecycleExtension,
        hook: str,
        record: SandboxRecord,
        work: Awaitable[None],
    ) -> None:
        begun = time.monotonic()
        try:
            async with asyncio.timeout(extension.timeout_s):
                await work
        except TimeoutError as error:
            raise Refused(
                f"extension {extension.name!r}: {hook} took longer than "
                f"{extension.timeout_s:g} s",
                reason="ExtensionTimedOut",
            ) from error
        except DriverError:
            raise
        except Exception as error:
            _log.exception(
                "extension %s failed in %s for %s", extension.name, hook, record.id
            )
            raise Refused(
                f"extension {extension.name!r} failed in {hook}: "
                f"{type(error).__name__}",
                reason="ExtensionFailed",
            ) from error
        finally:
            _log.info(
                "%s: %s.%s took %.0f ms",
                record.id,
                extension.name,
                hook,
                (time.monotonic() - begun) * 1e3,
            )

    async def configure_launch(
        self, record: SandboxRecord, ledger: Ledger
    ) -> PlanDraft:
        """Let every active extension shape the draft; what began is in the ledger."""
        draft = PlanDraft()
        for extension in self._active(record):
            key = RUN + extension.name
            await self._note_run(ledger, extension.name)
            draft.on_behalf_of(extension.name)
            context = await self._context(
                record, extension.name, ledger, key, save=_saver(ledger, extension.name)
            )
            await self._call(
                extension,
                "configure_launch",
                record,
                extension.configure_launch(context, draft),
            )
        return draft

    async def before_launch(
        self, record: SandboxRecord, ledger: Ledger, plan: LaunchPlan, draft: PlanDraft
    ) -> None:
        """Let every active extension allocate; environment that they add is in the
        draft.
        """
        for extension in self._active(record):
            draft.on_behalf_of(extension.name)
            key = RUN + extension.name
            context = await self._context(
                record, extension.name, ledger, key, save=_saver(ledger, extension.name)
            )
            hook = extension.before_launch(context, plan, EnvironmentDraft(draft))
            await self._call(extension, "before_launch", record, hook)

    async def before_restore(
        self, record: SandboxRecord, ledger: Ledger, kind: RestoreKind
    ) -> None:
        """In order; the first error is raised."""
        runs_again = kind not in {RestoreKind.ADOPTED, RestoreKind.RELAUNCHED}
        for extension in self._active(record):
            if runs_again:
                await self._note_run(ledger, extension.name)
            context = await self._saving_context(record, extension.name, ledger)
            await self._call(
                extension,
                "before_restore",
                record,
                extension.before_restore(context, kind),
            )

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
        for extension in self._active(record):
            context = await self._saving_context(record, extension.name, ledger)
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

    async def _saving_context(
        self, record: SandboxRecord, name: str, ledger: Ledger
    ) -> HookContext:
        return await self._context(
            record, name, ledger, STAY + name, save=_saver(ledger, name)
        )

    async def after_restore(
        self, record: SandboxRecord, ledger: Ledger, kind: RestoreKind
    ) -> list[str]:
        """In order; errors are returned as texts for events."""
        problems = []
        for extension in self._active(record):
            context = await self._context(
                record, extension.name, ledger, STAY + extension.name
            )
            try:
                await self._call(
                    extension,
                    "after_restore",
                    record,
                    extension.after_restore(context, kind),
                )
            except DriverError as error:
                problems.append(error.text())
        return problems

    async def undo(
        self, record: SandboxRecord, ledger: Ledger, held: Held, reason: Reason
    ) -> None:
        """Run the clean-up hook behind a ledger entry. CleanupError when the extension
        is not loaded.
        """
        name = held.data["extension"]
        extension = self._extensions.get(name)
        if extension is None:
            raise CleanupError(
                f"extension {name!r} has something to undo but is not loaded",
                reason="ExtensionMissing",
                resolution=(
                    "list it in the configuration's `extensions` and restart the driver"
                ),
            )
        saved = {**_saved(ledger, STAY + name), **_saved(ledger, RUN + name)}
        context = await self._context(record, name, ledger, held.key)
        context = HookContext(context.sandbox, context.state_dir, context.config, saved)
        if held.key.startswith(RUN):
            work: Awaitable[None] = extension.after_launch_failed(context, reason)
            await self._call(extension, "after_launch_failed", record, work)
        else:
            await self._call(
                extension, "after_delete", record, extension.after_delete(context)
            )


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
