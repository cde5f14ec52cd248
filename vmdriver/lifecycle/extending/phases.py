"""The driver-neutral extension API: what others may write to accompany a sandbox of any driver
that speaks openshell.compute.v1. This page is its manual.

An extension is a class with async methods, all optional: one for each phase.

Phases
------
    validate_request   once or more before a create, and whenever somebody only asks. No effects.
    prepare_plan       as often; shapes the draft. No effects.
    before_create      once; the sandbox is on disk. Allocate here: `hold`, then act.
    before_start       before each start, the first one too. Allocate what a run needs.
    after_create       once; the driver has accepted the sandbox.
    on_create_failed   instead: the driver refused, or the process died before it had answered.
    after_ready        after each start, when the driver says Ready for the first time.
    before_stop        before a stop that was asked for. An error refuses it.
    after_stop         after each run, however it ended: stopped, crashed, deleted.
    before_delete      before a delete that was asked for. An error refuses it.
    after_delete       once; the sandbox is gone.
    reconcile          for each sandbox that is there, when the process has started and when a
                       base driver has come back.

On the VM driver a create is accepted when before_create is through; its start follows, and
an error of before_start fails the sandbox, not the create. before_stop and before_delete may be
called there while a start is under way.

Order and errors
----------------
Set-up phases run in registration order and stop at the first error, which refuses what was
asked for. `after_create`, `on_create_failed`, `after_ready`, `after_stop`, `after_delete` and
`reconcile` report what has happened already: their errors are logged, shown and change nothing;
the three that end something run in reverse order.

Raise vmdriver.errors.Refused (FAILED_PRECONDITION) or Exhausted (RESOURCE_EXHAUSTED) with a text
for the user. Anything else refuses too, with the extension and the phase named. Each call has
`timeout_s` seconds.

What is held
------------
`await context.hold(kind, name, undo_data)` is durable before it returns; act afterwards. What is
held is given back by `undo`, in reverse order across all extensions, when the run ends
(`Until.STOP`) or the sandbox goes (`Until.DELETE`), also in a process that never ran the phase
(after SIGKILL at any moment). So `undo` must be idempotent, and must not mind what never came
to be. One that fails stays held, is shown, and is tried again. After a crash a phase may run
again: holding the same thing twice is fine.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.draft import Draft
from vmdriver.lifecycle.extending.hooks import (
    Everywhere,
    OnRequest,
    SandboxView,
    defined,
)
from vmdriver.model.runs import RestoreKind


class Until(StrEnum):
    """How long something is held."""

    STOP = "stop"
    DELETE = "delete"


@dataclass(frozen=True)
class Hold:
    """Something that an extension has, or is about to have, somewhere."""

    kind: str
    name: str
    data: Mapping[str, Any]
    """All that `undo` needs; JSON."""


Keep = Callable[[str, str, Mapping[str, Any], Until], Awaitable[None]]


@dataclass(frozen=True)
class Context:
    """Given to every call. Holds no token, key or other secret of the sandbox."""

    phase: CallPoint
    sandbox: SandboxView
    driver: str
    """The driver that the gateway sees."""
    base_driver: str
    """The driver behind it, for a composed one; else ""."""
    config: Any
    """The operator's [extension.<name>] table: the `configuration` model, or a mapping."""
    parameters: Any
    """What the request says to this extension: the `parameters` model, or an empty mapping."""
    state_dir: Path
    """The extension's own directory for this sandbox, 0700, gone with the sandbox."""
    log: logging.LoggerAdapter[logging.Logger]
    """Lines name the sandbox, the extension and the phase."""
    trace: Mapping[str, str] = field(default_factory=dict)
    """traceparent and tracestate of the call that led here, if there were any."""
    restore: RestoreKind | None = None
    """In before_start, after_ready and reconcile of a sandbox that returns from kept state."""
    held: tuple[Hold, ...] = ()
    """What this extension holds for this sandbox now, oldest first."""
    keep: Keep | None = None
    look_around: Callable[[], tuple[SandboxView, ...]] = tuple
    """Behind `others`."""

    @property
    def others(self) -> tuple[SandboxView, ...]:
        """Sandboxes that this extension takes part in and that came before this one. Looked up
        at each use: there may be thousands, and most extensions do not ask.
        """
        return self.look_around()

    async def hold(
        self,
        kind: str,
        name: str,
        undo_data: Mapping[str, Any] | None = None,
        until: Until = Until.DELETE,
    ) -> None:
        """Note, durably, that `undo` will have to give this back. Call it before acting.
        LookupError in phases that must have no effects.
        """
        if self.keep is None:
            raise LookupError(f"nothing can be held in {self.phase.value}")
        await self.keep(kind, name, dict(undo_data or {}), until)


@dataclass(frozen=True)
class Call:
    """One call of an extension, as `observe` is told."""

    extension: str
    phase: str
    sandbox_id: str
    workspace: str
    seconds: float
    error: str
    """"" if it went well."""


class Extension:
    """Base class. Every method is optional; what an extension does not define is never called."""

    name: ClassVar[str]
    """ASCII letters, digits, . - _; unique."""
    version: ClassVar[str] = "0"
    activation: Everywhere | OnRequest = Everywhere()
    required: ClassVar[frozenset[CallPoint]] = frozenset()
    """Phases without which this extension must not take part: on a driver that lacks one,
    creates that ask for it are refused. Others are skipped there.
    """
    parameters: ClassVar[type[BaseModel] | None] = None
    """What a request may say to it."""
    configuration: ClassVar[type[BaseModel] | None] = None
    """What its table in the configuration may hold."""
    timeout_s: float = 30.0

    async def validate_request(self, context: Context) -> None:
        """Refuse what must not be created. No effects."""

    async def prepare_plan(self, context: Context, draft: Draft) -> None:
        """Shape what the driver will be asked for. No effects."""

    async def before_create(self, context: Context, draft: Draft) -> None:
        """Allocate what the sandbox needs for its whole life; labels and environment may say
        what was allocated.
        """

    async def after_create(self, context: Context) -> None:
        """The driver has accepted the sandbox."""

    async def on_create_failed(self, context: Context) -> None:
        """It has not. What is held is undone afterwards."""

    async def before_start(self, context: Context) -> None:
        """Allocate what one run needs."""

    async def after_ready(self, context: Context) -> None:
        """The driver says that it is ready."""

    async def before_stop(self, context: Context) -> None:
        """It is about to be stopped."""

    async def after_stop(self, context: Context) -> None:
        """The run is over. What is held until then is undone afterwards."""

    async def before_delete(self, context: Context) -> None:
        """It is about to be deleted."""

    async def after_delete(self, context: Context) -> None:
        """It is gone. Everything that is held is undone afterwards."""

    async def reconcile(self, context: Context) -> None:
        """Look whether what is held is still there; repair it."""

    async def undo(self, context: Context, hold: Hold) -> None:
        """Give one thing back. Idempotent. Required of whoever holds anything."""
        raise NotImplementedError(
            f"extension {self.name!r} holds a {hold.kind} and cannot undo it"
        )

    async def observe(self, call: Call, config: Any) -> None:
        """Some extension was called (this one too). For records of what happened. `config`:
        as in `Context`.
        """


def phases_of(extension: Extension) -> frozenset[CallPoint]:
    """The phases that it defines."""
    return frozenset(map(CallPoint, defined(extension, Extension, CallPoint)))
