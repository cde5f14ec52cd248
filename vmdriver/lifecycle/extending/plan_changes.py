"""What phases have changed, put into a request and a launch plan of the VM driver. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from vmdriver.errors import Refused
from vmdriver.lifecycle.extending.draft import PLAN_POINTS, Draft, PlanDraft
from vmdriver.model.mistakes import first_mistake
from vmdriver.model.quantity import parse_resources
from vmdriver.model.record import Change
from vmdriver.model.spec import SandboxSpec

_RESOURCES = "template.resources."
_FIELDS = {
    "template.image": "image",
    "template.labels": "labels",
    "spec.environment": "environment",
    "spec.log_level": "log_level",
    "template.driver_config": "driver_config",
}
"""What extensions call a field of the request, and what we do."""


def draft_of(spec: SandboxSpec) -> Draft:
    """What extensions see of a request, and may change."""
    values = {field: getattr(spec, name) for field, name in _FIELDS.items()}
    limits = {_RESOURCES + name: text for name, text in _limits(spec).items()}
    return Draft({**values, **limits}, PLAN_POINTS)


def _limits(spec: SandboxSpec) -> dict[str, str]:
    millis, memory_mib = spec.resources.cpu_millis, spec.resources.memory_mib
    return {
        "cpu_request": "",
        "cpu_limit": "" if millis is None else f"{millis}m",
        "memory_request": "",
        "memory_limit": "" if memory_mib is None else f"{memory_mib}Mi",
    }


def changed_spec(spec: SandboxSpec, changes: Iterable[Change]) -> SandboxSpec:
    """The request as it is after these. Refused for a value of the wrong type; InvalidRequest for
    a quantity that is none.
    """
    values, limits = spec.model_dump(), _limits(spec)
    for change in changes:
        name = _FIELDS.get(change.field)
        if name and change.key:
            values[name] = {**values[name], change.key: change.value}
        elif name:
            values[name] = change.value
        elif change.field.startswith(_RESOURCES):
            limits[change.field.removeprefix(_RESOURCES)] = _text(change)
    sizes = parse_resources(**limits).model_copy(update={"gpus": spec.resources.gpus})
    values["resources"] = sizes.model_dump()
    try:
        return SandboxSpec.model_validate(values)
    except ValidationError as error:
        field, _ = first_mistake(error)
        raise Refused(
            f"an extension set {field} to what it cannot be",
            detail=str(error),
            reason="ExtensionRefused",
        ) from error


def shape(changes: Iterable[Change], draft: PlanDraft | None = None) -> PlanDraft:
    """Put what extensions changed into the machine's plan: this draft, or a new one. Refused."""
    draft = draft or PlanDraft()
    for change in changes:
        draft.on_behalf_of(change.extension)
        if change.field in _SETTERS:
            _SETTERS[change.field](draft, change)
    return draft


def _text(change: Change) -> str:
    if isinstance(change.value, str):
        return change.value
    raise _wrong(change, "a text")


def _whole(change: Change) -> int:
    if isinstance(change.value, int) and not isinstance(change.value, bool):
        return change.value
    raise _wrong(change, "a whole number")


def _wrong(change: Change, what: str) -> Refused:
    text = f"extension {change.extension!r}: {change.field} must be {what}"
    return Refused(text, reason="ExtensionRefused")


_SETTERS: Mapping[str, Callable[[PlanDraft, Change], None]] = {
    "spec.environment": lambda d, c: d.set_environment(c.key, _text(c)),
    "plan.vcpus": lambda d, c: d.set_vcpus(_whole(c)),
    "plan.memory_mib": lambda d, c: d.set_memory_mib(_whole(c)),
    "plan.kernel": lambda d, c: d.set_kernel(Path(_text(c))),
    "plan.initramfs": lambda d, c: d.set_initramfs(Path(_text(c))),
    "plan.kernel_profile": lambda d, c: d.set_kernel_profile(_text(c)),
    "plan.guest_init_dropins": lambda d, c: d.add_drop_in(c.key, _text(c)),
    "plan.required_features": lambda d, c: (
        d.require_feature(c.key) if c.value else None
    ),
}
"""Fields of a change that shape the plan; the others shaped the request."""
