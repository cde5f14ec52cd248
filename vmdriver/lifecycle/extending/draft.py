"""What extensions may change, in which phase: data; and the draft, which remembers who asked for
what. Each language has its own view of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmdriver.errors import Refused
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.model.environment import is_driver_owned
from vmdriver.model.record import Change

_PREPARE = frozenset({CallPoint.PREPARE_PLAN})
_ALLOCATED = frozenset({CallPoint.PREPARE_PLAN, CallPoint.BEFORE_CREATE})
_FILE_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]+")
_MANAGED_LABELS = ("openshell.io/", "openshell.ai/", "openshell.")
IMMUTABLE = {
    "sandbox.id": "is the gateway's",
    "sandbox.name": "is the gateway's",
    "sandbox.namespace": "is the gateway's",
    "sandbox.workspace": "is the gateway's",
    "spec.sandbox_token": "is the sandbox's identity",
    "spec.command": "is the sandbox's main process, exactly as it was asked for",
    "spec.tty": "belongs to the main process",
    "template.agent_socket_path": "belongs to the driver",
    "template.platform_config": "belongs to the gateway and the platform",
}
"""Fields that no extension changes, and why."""


@dataclass(frozen=True)
class MutationPoint:
    """One field that may be changed. `keyed`: it is a map, changed key by key."""

    field: str
    phases: frozenset[CallPoint]
    keyed: bool
    meaning: str


def _one(field: str, meaning: str) -> MutationPoint:
    return MutationPoint(field, _PREPARE, keyed=False, meaning=meaning)


def _map(
    field: str, meaning: str, phases: frozenset[CallPoint] = _PREPARE
) -> MutationPoint:
    return MutationPoint(field, phases, keyed=True, meaning=meaning)


_LIMITS = {"cpu": "CPU, as 500m or 2", "memory": "memory, as 512Mi"}
REQUEST_POINTS = (
    _one("template.image", "OCI reference of the image"),
    _map("template.labels", "labels that the driver is given", _ALLOCATED),
    _map("template.environment", "environment of the sandbox's template", _ALLOCATED),
    _map("spec.environment", "environment; wins over the above", _ALLOCATED),
    _one("spec.log_level", "the supervisor's log level"),
    *(
        _one(f"template.resources.{what}_{bound}", meaning)
        for what, meaning in _LIMITS.items()
        for bound in ("request", "limit")
    ),
    _map("template.driver_config", "the base driver's own settings"),
)
"""What a composed driver lets extensions change: the request that goes to its base."""

_DROP_IN = "programs that the guest runs as root before the supervisor, by name"
PLAN_POINTS = (
    *(p for p in REQUEST_POINTS if p.field != "template.environment"),
    _one("plan.vcpus", "whole vCPUs, at least 1"),
    _one("plan.memory_mib", "guest memory in MiB"),
    _one("plan.kernel", "path of another kernel"),
    _one("plan.initramfs", "path of that kernel's initramfs"),
    _one("plan.kernel_profile", "what the kernel is for"),
    _map("plan.guest_init_dropins", _DROP_IN),
    _map("plan.required_features", "features that the driver must have"),
)
"""What the VM driver lets extensions change: the request, and the plan of the machine. It knows
one environment only, the template's and the spec's in one.
"""


MIN_MEMORY_MIB = 96
"""Less is no machine, whichever kernel an extension brings. Our own boot files need more: what a
request must ask for is lifecycle.control.checks.MIN_MEMORY_MIB.
"""


class Asked:
    """What extensions have asked for. Two that set one value differently are refused, naming both;
    the same value twice is the first one's; its own an extension may change.
    """

    def __init__(self) -> None:
        self.by = ""
        """Who asks from now on."""
        self._changes: dict[tuple[str, str], Change] = {}

    def set(self, field: str, key: str, value: Any, shown: str) -> None:
        """Refused, calling the field as `shown`."""
        present = self._changes.get((field, key))
        if present is None or present.extension == self.by:
            self._changes[field, key] = Change(
                field=field, key=key, value=value, extension=self.by
            )
        elif present.value != value:
            raise Refused(
                f"extensions {present.extension!r} and {self.by!r} both set {shown}, "
                "differently",
                reason="ExtensionConflict",
                resolution="disable one of them for this sandbox",
            )

    def get(self, field: str, key: str = "") -> Change | None:
        """What was asked last, if anything was."""
        return self._changes.get((field, key))

    def all(self) -> tuple[Change, ...]:
        """In the order of the first that set each."""
        return tuple(self._changes.values())

    def refusal(self, shown: str, why: str) -> Refused:
        """Of what the one who asks may not have."""
        text = f"extension {self.by!r}: {shown} {why}"
        return Refused(text, reason="ExtensionRefused")


class Draft:
    """A request while it may still be shaped. Remembers which extension asked for what.

    Two extensions that set one value differently are refused, naming both; the same value
    twice is fine. What the request itself says may be replaced.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        points: tuple[MutationPoint, ...] = REQUEST_POINTS,
    ) -> None:
        self._original = values
        self._points = {point.field: point for point in points}
        self._asked, self._phase = Asked(), CallPoint.PREPARE_PLAN

    def on_behalf_of(self, extension: str, phase: CallPoint) -> None:
        """From now on `extension` asks. Called by the runner."""
        self._asked.by, self._phase = extension, phase

    def value(self, field: str, key: str = "") -> Any:
        """As it is now: changed, or as it was asked for. None if it is not set."""
        change = self._asked.get(field, key)
        if change is not None:
            return change.value
        original = self._original.get(field)
        return (original or {}).get(key) if key else original

    def set(self, field: str, value: Any, key: str = "") -> None:
        """Change a field, or one key of a map. Refused, naming the extension, the field and
        the reason.
        """
        self._check(field, key)
        self._asked.set(field, key, value, _shown(field, key))

    def set_label(self, name: str, value: str) -> None:
        """A label that the driver is given."""
        self.set("template.labels", value, name)

    def set_environment(self, name: str, value: str) -> None:
        """An environment variable of the sandbox; not one of OpenShell's own."""
        self.set("spec.environment", value, name)

    def set_default_environment(self, name: str, value: str) -> None:
        """The same, unless the request sets it itself."""
        if self.value("spec.environment", name) is None:
            self.set_environment(name, value)

    def changes(self) -> tuple[Change, ...]:
        """Every change, in the order of the first that set it."""
        return self._asked.all()

    def _check(self, field: str, key: str) -> None:
        point, refusal = self._points.get(field), self._asked.refusal
        if point is None:
            why = IMMUTABLE.get(field, "is not a field that may be changed here")
            raise refusal(field, why)
        shown = _shown(field, key)
        if self._phase not in point.phases:
            allowed = ", ".join(sorted(point.phases))
            why = f"may be changed in {allowed}, not in {self._phase.value}"
            raise refusal(shown, why)
        if point.keyed != bool(key):
            what = "a map: name a key" if point.keyed else "one value: it has no keys"
            raise refusal(shown, f"is {what}")
        if field.endswith("environment") and (not key.strip() or is_driver_owned(key)):
            raise refusal(shown, "belongs to OpenShell")
        if field == "template.labels" and key.startswith(_MANAGED_LABELS):
            raise refusal(shown, "is a label that the gateway manages")


def _shown(field: str, key: str) -> str:
    return f"{field}[{key}]" if key else field


_ENVIRONMENT, _DROP_INS = "spec.environment", "plan.guest_init_dropins"
_FEATURES = "plan.required_features"
_COLLECTED = {"env": _ENVIRONMENT, "drop_in": _DROP_INS, "feature": _FEATURES}


class PlanDraft:
    """The launch plan while it may still be shaped. Remembers which extension asked for
    what.

    Two extensions that set one value differently are refused, naming both; the same
    value twice is fine.
    """

    def __init__(self) -> None:
        self._asked = Asked()

    def on_behalf_of(self, extension: str) -> None:
        """From now on `extension` asks. Called by the runner."""
        self._asked.by = extension

    def set_vcpus(self, vcpus: int) -> None:
        """Whole number of vCPUs, at least 1 and at most the operator's max_vcpus."""
        self._set("vcpus", vcpus, "" if vcpus >= 1 else "must be at least 1")

    def set_memory_mib(self, memory_mib: int) -> None:
        """Guest memory in MiB, at least 96 and at most the operator's max_mem_mib."""
        enough = memory_mib >= MIN_MEMORY_MIB
        problem = "" if enough else f"must be at least {MIN_MEMORY_MIB}"
        self._set("memory_mib", memory_mib, problem)

    def set_kernel(self, kernel: Path, initramfs: Path | None = None) -> None:
        """Another kernel than the distribution's; it must know our initramfs's modules
        or bring its own initramfs.
        """
        problem = "" if kernel.is_file() else f"{kernel} is not a file"
        self._set("kernel", str(kernel), problem)
        if initramfs is not None:
            self.set_initramfs(initramfs)

    def set_initramfs(self, initramfs: Path) -> None:
        """Another initramfs, for the kernel."""
        problem = "" if initramfs.is_file() else f"{initramfs} is not a file"
        self._set("initramfs", str(initramfs), problem)

    def set_kernel_profile(self, profile: str) -> None:
        """A name for what the kernel is meant for; carried in the plan."""
        self._set("kernel_profile", profile)

    def add_drop_in(self, name: str, contents: str) -> None:
        """A program that runs in the guest as root, before the supervisor, with
        ROOT_PREFIX set (contract §4.7).
        """
        if not _FILE_NAME.fullmatch(name):
            why = f"{name!r} is not a name of A-Z a-z 0-9 . - _"
            raise self._asked.refusal("guest_init_dropins", why)
        self._asked.set(_DROP_INS, name, contents, f"guest_init_dropins[{name}]")

    def set_environment(self, name: str, value: str) -> None:
        """An environment variable of the supervisor; not one of the driver's own."""
        shown = f"env[{name}]"
        if is_driver_owned(name) or name in {"HOME", "USER", "PATH", "TERM"}:
            raise self._asked.refusal(shown, "belongs to the driver")
        if not name or "=" in name or "\0" in name + value:
            why = "is not a name and value that a process can be given"
            raise self._asked.refusal(shown, why)
        self._asked.set(_ENVIRONMENT, name, value, shown)

    def require_feature(self, feature: str) -> None:
        """Refuse the launch unless the driver has this feature
        (lifecycle.launch.planner.FEATURES).
        """
        self._asked.set(_FEATURES, feature, feature, feature)

    def value(self, field_name: str, default: Any) -> Any:
        """A single value, or the default."""
        change = self._asked.get(f"plan.{field_name}")
        return change.value if change else default

    def asker(self, field_name: str) -> str:
        """Which extension set that single value; "" for none."""
        change = self._asked.get(f"plan.{field_name}")
        return change.extension if change else ""

    def collected(self, kind: str) -> dict[str, tuple[Any, str]]:
        """Values of a kind (env, drop_in, feature) by name, each with the extension
        that asked.
        """
        changes = (c for c in self._asked.all() if c.field == _COLLECTED[kind])
        return {change.key: (change.value, change.extension) for change in changes}

    def _set(self, name: str, value: Any, problem: str = "") -> None:
        if problem:
            raise self._asked.refusal(name, problem)
        self._asked.set(f"plan.{name}", "", value, name)


class EnvironmentDraft:
    """The only thing that before_launch may still add to: environment variables."""

    def __init__(self, draft: PlanDraft) -> None:
        self.set = draft.set_environment
