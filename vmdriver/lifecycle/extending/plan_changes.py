"""What phases have changed, put into a request and a launch plan of the VM driver. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vmdriver.errors import Refused
from vmdriver.lifecycle.extending.draft import PLAN_POINTS, Draft
from vmdriver.lifecycle.extending.hooks import PlanDraft
from vmdriver.model.quantity import parse_resources
from vmdriver.model.record import Change
from vmdriver.model.spec import SandboxSpec

_RESOURCES = "template.resources."


def draft_of(spec: SandboxSpec) -> Draft:
    """What extensions see of a request, and may change."""
    return Draft(
        {
            "template.image": spec.image,
            "template.labels": spec.labels,
            "spec.environment": spec.environment,
            "spec.log_level": spec.log_level,
            "template.driver_config": spec.driver_config,
            **{_RESOURCES + name: text for name, text in _limits(spec).items()},
        },
        PLAN_POINTS,
    )


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
    image, log_level, limits = spec.image, spec.log_level, _limits(spec)
    labels, environment = dict(spec.labels), dict(spec.environment)
    driver_config = dict(spec.driver_config)
    keyed = {
        "template.labels": labels,
        "spec.environment": environment,
        "template.driver_config": driver_config,
    }
    for change in changes:
        if change.field in keyed:
            keyed[change.field][change.key] = change.value
        elif change.field == "template.image":
            image = change.value
        elif change.field == "spec.log_level":
            log_level = change.value
        elif change.field.startswith(_RESOURCES):
            limits[change.field.removeprefix(_RESOURCES)] = _text(change)
    values = {
        **spec.model_dump(),
        "image": image,
        "log_level": log_level,
        "labels": labels,
        "environment": environment,
        "driver_config": driver_config,
        "resources": parse_resources(**limits).model_dump(),
    }
    try:
        return SandboxSpec.model_validate(values)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise Refused(
            f"an extension set {field} to what it cannot be",
            detail=str(error),
            reason="ExtensionRefused",
        ) from error


def shape(draft: PlanDraft, changes: Iterable[Change]) -> None:
    """Put what one extension changed into the machine's plan, on whose behalf the draft is now.
    Refused.
    """
    for change in changes:
        value = change.value
        match change.field:
            case "spec.environment":
                draft.set_environment(change.key, _text(change))
            case "plan.vcpus":
                draft.set_vcpus(_whole(change))
            case "plan.memory_mib":
                draft.set_memory_mib(_whole(change))
            case "plan.kernel":
                draft.set_kernel(Path(_text(change)))
            case "plan.initramfs":
                draft.set_initramfs(Path(_text(change)))
            case "plan.kernel_profile":
                draft.set_kernel_profile(_text(change))
            case "plan.guest_init_dropins":
                draft.add_drop_in(change.key, _text(change))
            case "plan.required_features" if value:
                draft.require_feature(change.key)


def _text(change: Change) -> str:
    return str(_checked(change, str, "a text"))


def _whole(change: Change) -> int:
    return int(_checked(change, int, "a whole number"))


def _checked(change: Change, kind: type, words: str) -> Any:
    if not isinstance(change.value, kind) or isinstance(change.value, bool):
        raise Refused(
            f"extension {change.extension!r}: {change.field} must be {words}",
            reason="ExtensionRefused",
        )
    return change.value
