"""The extension API: what others may write to shape and accompany a sandbox's launch.

An extension is a class with async methods, all optional. This page is its manual.

When which hook runs
--------------------
    create, start     configure_launch, (plan is frozen), before_launch, machine starts
    from a template   the same, with before_restore(template) before the machine goes on
                      and after_restore(template) behind it
    start again       before_restore(relaunched), the same, after_restore(relaunched)
    driver restart    before_restore(adopted), after_restore(adopted)
    suspend           before_suspend, memory is kept, after_launch_failed(Suspended)
    resume            before_restore(resumed), machine goes on, after_restore(resumed)
    snapshot          before_snapshot; the machine goes on
    back to one       after_launch_failed(Stopped), before_restore(snapshot), machine goes
                      on, after_restore(snapshot)
    fork of a disk    before_fork for the source, then a create of the new one
    stop, end, failed launch    after_launch_failed(reason)
    delete            after_launch_failed if something was up, then after_delete

`Adopted` means that the machine was running all the time. After `resumed` and `snapshot`
there is no configure_launch and no before_launch: what a run needs on the host is taken in
before_restore, which may `save`.

Order and undo
--------------
Set-up hooks run in registration order and stop at the first error. Clean-up hooks run
in reverse order, only for extensions whose set-up was begun, with the state that they
saved, also in a process that never ran the set-up (after SIGKILL of the driver). They
must be idempotent: a crash in the middle makes them run again. Their errors are logged,
shown as events and retried; they never keep the machine's own resources from being
released.

Errors and time
---------------
Raise vmdriver.errors.Refused (FAILED_PRECONDITION) or Exhausted (RESOURCE_EXHAUSTED) to
refuse a launch with a text for the user; anything else is refused as well, with the
extension named. Each call has `timeout_s` seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from vmdriver.lifecycle.extending.draft import EnvironmentDraft, PlanDraft
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.runs import Reason, RestoreKind
from vmdriver.model.spec import Resources


@dataclass(frozen=True)
class Everywhere:
    """Active for every sandbox."""


@dataclass(frozen=True)
class OnRequest:
    """Active where template.labels has openshell.io/extension.<key> with an affirmative
    value.
    """

    key: str


@dataclass(frozen=True)
class SandboxView:
    """The sandbox as extensions see it: nothing secret."""

    id: str
    name: str
    workspace: str
    image: str
    labels: Mapping[str, str]
    resources: Resources


@dataclass(frozen=True)
class HookContext:
    """Given to every hook."""

    sandbox: SandboxView
    state_dir: Path
    """The extension's own directory for this sandbox, 0700, gone with the sandbox."""
    config: Mapping[str, Any]
    """The operator's [extension.<name>] table."""
    parameters: Any = field(default_factory=dict)
    """What the request says to this extension: the `parameters` model, or an empty mapping."""
    saved: Mapping[str, Any] = field(default_factory=dict)
    """What `save` was given last; in clean-up hooks, whatever process runs them."""
    save: Callable[[Mapping[str, Any]], Awaitable[None]] | None = None
    """Store JSON-able state durably. In configure_launch, before_launch, before_suspend,
    before_snapshot, before_fork, and before_restore of what runs again.
    """


class LifecycleExtension:
    """Base class. Names of hooks and their meaning are the upstream VM driver's."""

    name: ClassVar[str]
    """ASCII letters, digits, . - _; unique."""
    version: ClassVar[str] = "0"
    activation: Everywhere | OnRequest = Everywhere()
    parameters: ClassVar[type[BaseModel] | None] = None
    """What a request may say to it."""
    timeout_s: float = 30.0

    async def configure_launch(self, context: HookContext, draft: PlanDraft) -> None:
        """Shape the plan. No side effects outside `context.state_dir` and what
        `context.save` tells how to undo.
        """

    async def before_launch(
        self, context: HookContext, plan: LaunchPlan, environment: EnvironmentDraft
    ) -> None:
        """The plan is decided; allocate what the machine needs on the host. The machine
        starts next.
        """

    async def after_launch_failed(self, context: HookContext, reason: Reason) -> None:
        """Give back what belongs to the run that has ended or did not come to be.
        Idempotent.
        """

    async def after_delete(self, context: HookContext) -> None:
        """The sandbox is going for good. Idempotent; may follow after_launch_failed."""

    async def before_restore(self, context: HookContext, kind: RestoreKind) -> None:
        """A sandbox returns from persisted state. An error refuses a relaunch; an
        adoption goes on regardless.
        """

    async def before_suspend(self, context: HookContext, plan: LaunchPlan) -> None:
        """The machine's memory is about to be kept and the machine to end. An error refuses
        that: `vmdriver suspend` fails, a gateway's stop becomes a shutdown.
        """

    async def before_snapshot(
        self, context: HookContext, plan: LaunchPlan, name: str
    ) -> None:
        """A snapshot is about to be taken. An error refuses it; the machine goes on."""

    async def before_fork(self, context: HookContext, fork: SandboxView) -> None:
        """A new sandbox is about to start from a snapshot of this one. An error refuses
        its create.
        """

    async def after_restore(self, context: HookContext, kind: RestoreKind) -> None:
        """It is back. Errors are logged."""


HOOKS = (
    *("configure_launch", "before_launch", "after_launch_failed", "after_delete"),
    *("before_restore", "after_restore"),
    *("before_suspend", "before_snapshot", "before_fork"),
)
"""Every hook by name."""


def defined(extension: object, base: type, names: Iterable[str]) -> tuple[str, ...]:
    """Those methods of `base` that an extension defines itself."""
    kind = type(extension)
    return tuple(n for n in names if getattr(kind, n) is not getattr(base, n))


def hooks_of(extension: LifecycleExtension) -> tuple[str, ...]:
    """The hooks that it defines."""
    return defined(extension, LifecycleExtension, HOOKS)
