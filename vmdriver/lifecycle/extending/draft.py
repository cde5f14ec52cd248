"""What extensions may change of a request, in which phase: data, and the draft that enforces it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmdriver.errors import Refused
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.model.environment import is_driver_owned
from vmdriver.model.record import Change

_PREPARE = frozenset({CallPoint.PREPARE_PLAN})
_ALLOCATED = frozenset({CallPoint.PREPARE_PLAN, CallPoint.BEFORE_CREATE})
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


REQUEST_POINTS = (
    MutationPoint("template.image", _PREPARE, False, "OCI reference of the image"),
    MutationPoint(
        "template.labels", _ALLOCATED, True, "labels that the driver is given"
    ),
    MutationPoint(
        "template.environment",
        _ALLOCATED,
        True,
        "environment of the sandbox's template",
    ),
    MutationPoint(
        "spec.environment", _ALLOCATED, True, "environment; wins over the above"
    ),
    MutationPoint("spec.log_level", _PREPARE, False, "the supervisor's log level"),
    MutationPoint(
        "template.resources.cpu_request", _PREPARE, False, "CPU, as 500m or 2"
    ),
    MutationPoint("template.resources.cpu_limit", _PREPARE, False, "CPU, as 500m or 2"),
    MutationPoint(
        "template.resources.memory_request", _PREPARE, False, "memory, as 512Mi"
    ),
    MutationPoint(
        "template.resources.memory_limit", _PREPARE, False, "memory, as 512Mi"
    ),
    MutationPoint(
        "template.driver_config", _PREPARE, True, "the base driver's own settings"
    ),
)
"""What a composed driver lets extensions change: the request that goes to its base."""

PLAN_POINTS = (
    *(p for p in REQUEST_POINTS if p.field != "template.environment"),
    MutationPoint("plan.vcpus", _PREPARE, False, "whole vCPUs, at least 1"),
    MutationPoint("plan.memory_mib", _PREPARE, False, "guest memory in MiB"),
    MutationPoint("plan.kernel", _PREPARE, False, "path of another kernel"),
    MutationPoint("plan.initramfs", _PREPARE, False, "path of that kernel's initramfs"),
    MutationPoint("plan.kernel_profile", _PREPARE, False, "what the kernel is for"),
    MutationPoint(
        "plan.guest_init_dropins",
        _PREPARE,
        True,
        "programs that the guest runs as root before the supervisor, by name",
    ),
    MutationPoint(
        "plan.required_features", _PREPARE, True, "features that the driver must have"
    ),
)
"""What the VM driver lets extensions change: the request, and the plan of the machine. It knows
one environment only, the template's and the spec's in one.
"""


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
        self._changes: dict[tuple[str, str], Change] = {}
        self._extension, self._phase = "", CallPoint.PREPARE_PLAN

    def on_behalf_of(self, extension: str, phase: CallPoint) -> None:
        """From now on `extension` asks. Called by the runner."""
        self._extension, self._phase = extension, phase

    def value(self, field: str, key: str = "") -> Any:
        """As it is now: changed, or as it was asked for. None if it is not set."""
        if (field, key) in self._changes:
            return self._changes[field, key].value
        original = self._original.get(field)
        return (original or {}).get(key) if key else original

    def set(self, field: str, value: Any, key: str = "") -> None:
        """Change a field, or one key of a map. Refused, naming the extension, the field and
        the reason.
        """
        self._check(field, key)
        present = self._changes.get((field, key))
        if (
            present is not None
            and present.value != value
            and present.extension != self._extension
        ):
            raise Refused(
                f"extensions {present.extension!r} and {self._extension!r} both set "
                f"{_shown(field, key)}, differently",
                reason="ExtensionConflict",
                resolution="disable one of them for this sandbox",
            )
        self._changes[field, key] = Change(
            field=field, key=key, value=value, extension=self._extension
        )

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
        return tuple(self._changes.values())

    def _check(self, field: str, key: str) -> None:
        point = self._points.get(field)
        if point is None:
            why = IMMUTABLE.get(field, "is not a field that may be changed here")
            raise self._refusal(field, "", why)
        if self._phase not in point.phases:
            allowed = ", ".join(sorted(point.phases))
            raise self._refusal(
                field, key, f"may be changed in {allowed}, not in {self._phase.value}"
            )
        if point.keyed != bool(key):
            what = "a map: name a key" if point.keyed else "one value: it has no keys"
            raise self._refusal(field, key, f"is {what}")
        if field.endswith("environment") and (not key.strip() or is_driver_owned(key)):
            raise self._refusal(field, key, "belongs to OpenShell")
        if field == "template.labels" and key.startswith(_MANAGED_LABELS):
            raise self._refusal(field, key, "is a label that the gateway manages")

    def _refusal(self, field: str, key: str, why: str) -> Refused:
        return Refused(
            f"extension {self._extension!r}: {_shown(field, key)} {why}",
            reason="ExtensionRefused",
        )


def _shown(field: str, key: str) -> str:
    return f"{field}[{key}]" if key else field
