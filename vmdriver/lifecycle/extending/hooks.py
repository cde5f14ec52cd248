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

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from vmdriver.errors import Refused
from vmdriver.model.environment import is_driver_owned
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


MIN_MEMORY_MIB = 96
"""Less is no machine, whichever kernel an extension brings. Our own boot files need more: what a
request must ask for is lifecycle.control.checks.MIN_MEMORY_MIB.
"""


class PlanDraft:
    """The launch plan while it may still be shaped. Remembers which extension asked for
    what.

    Two extensions that set one value differently are refused, naming both; the same
    value twice is fine.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[Any, str]] = {}
        self._extension = ""

    def on_behalf_of(self, extension: str) -> None:
        """From now on `extension` asks. Called by the runner."""
        self._extension = extension

    def _set(self, field_name: str, value: Any) -> None:
        present = self._values.get(field_name)
        if present is not None and present[0] != value:
            raise Refused(
                f"extensions {present[1]!r} and {self._extension!r} both set "
                f"{field_name}, differently",
                reason="ExtensionConflict",
                resolution="disable one of them for this sandbox",
            )
        if present is None:
            self._values[field_name] = (value, self._extension)

    def set_vcpus(self, vcpus: int) -> None:
        """Whole number of vCPUs, at least 1 and at most the operator's max_vcpus."""
        if vcpus < 1:
            raise self._refusal("vcpus", "must be at least 1")
        self._set("vcpus", vcpus)

    def set_memory_mib(self, memory_mib: int) -> None:
        """Guest memory in MiB, at least 96 and at most the operator's max_mem_mib."""
        if memory_mib < MIN_MEMORY_MIB:
            raise self._refusal("memory_mib", f"must be at least {MIN_MEMORY_MIB}")
        self._set("memory_mib", memory_mib)

    def set_kernel(self, kernel: Path, initramfs: Path | None = None) -> None:
        """Another kernel than the distribution's; it must know our initramfs's modules
        or bring its own initramfs.
        """
        if not kernel.is_file():
            raise self._refusal("kernel", f"{kernel} is not a file")
        self._set("kernel", str(kernel))
        if initramfs is not None:
            self.set_initramfs(initramfs)

    def set_initramfs(self, initramfs: Path) -> None:
        """Another initramfs, for the kernel."""
        if not initramfs.is_file():
            raise self._refusal("initramfs", f"{initramfs} is not a file")
        self._set("initramfs", str(initramfs))

    def set_kernel_profile(self, profile: str) -> None:
        """A name for what the kernel is meant for; carried in the plan."""
        self._set("kernel_profile", profile)

    def add_drop_in(self, name: str, contents: str) -> None:
        """A program that runs in the guest as root, before the supervisor, with
        ROOT_PREFIX set (contract §4.7).
        """
        if (
            not name
            or name in {".", ".."}
            or not all(c.isascii() and (c.isalnum() or c in ".-_") for c in name)
        ):
            raise self._refusal(
                "guest_init_dropins", f"{name!r} is not a name of A-Z a-z 0-9 . - _"
            )
        present = self._values.get(f"drop_in:{name}")
        if present is not None:
            raise self._refusal(
                "guest_init_dropins", f"{name!r} is already added by {present[1]!r}"
            )
        self._set(f"drop_in:{name}", contents)

    def set_environment(self, name: str, value: str) -> None:
        """An environment variable of the supervisor; not one of the driver's own."""
        if is_driver_owned(name) or name in {"HOME", "USER", "PATH", "TERM"}:
            raise self._refusal(f"env[{name}]", "belongs to the driver")
        if not name or "=" in name or "\0" in name + value:
            raise self._refusal(
                f"env[{name}]", "is not a name and value that a process can be given"
            )
        self._set(f"env:{name}", value)

    def require_feature(self, feature: str) -> None:
        """Refuse the launch unless the driver has this feature
        (lifecycle.launch.planner.FEATURES).
        """
        self._values.setdefault(f"feature:{feature}", (feature, self._extension))

    def value(self, field_name: str, default: Any) -> Any:
        """A single value, or the default."""
        return self._values[field_name][0] if field_name in self._values else default

    def asker(self, field_name: str) -> str:
        """Which extension set that single value; "" for none."""
        return self._values[field_name][1] if field_name in self._values else ""

    def collected(self, kind: str) -> dict[str, tuple[Any, str]]:
        """Values of a kind (env, drop_in, feature) by name, each with the extension
        that asked.
        """
        prefix = f"{kind}:"
        return {
            k.removeprefix(prefix): v
            for k, v in self._values.items()
            if k.startswith(prefix)
        }

    def _refusal(self, field_name: str, problem: str) -> Refused:
        return Refused(
            f"extension {self._extension!r}: {field_name} {problem}",
            reason="ExtensionRefused",
        )


class EnvironmentDraft:
    """The only thing that before_launch may still add to: environment variables."""

    def __init__(self, draft: PlanDraft) -> None:
        self.set = draft.set_environment


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


def hooks_of(extension: LifecycleExtension) -> tuple[str, ...]:
    """The hooks that it defines."""
    kind = type(extension)
    return tuple(
        name
        for name in HOOKS
        if getattr(kind, name) is not getattr(LifecycleExtension, name)
    )
