"""What a create must satisfy before anything is done: fields, sizes, limits. Pure;
errors name the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vmdriver.errors import Exhausted, InvalidRequest, Refused
from vmdriver.lifecycle.launch.devices_asked import (
    DEVICES_SCHEMA,
    KEY,
    check_devices,
    wanted_devices,
)
from vmdriver.lifecycle.launch.egress import EGRESS_SCHEMAS, check_egress
from vmdriver.lifecycle.launch.environment import (
    check_environment_name,
    check_passable,
    environment,
)
from vmdriver.lifecycle.launch.host_mounts import check_host_mounts
from vmdriver.lifecycle.launch.planner import disk_mib, size_of
from vmdriver.lifecycle.launch.throttles import THROTTLE_SCHEMAS, check_throttles
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model import host_mount, volume
from vmdriver.model.snapshot_name import _SNAPSHOT_NAME, split_snapshot
from vmdriver.model.spec import SandboxSpec

MIN_MEMORY_MIB = 128
"""Our boot files (Debian 12, kernel 6.1) panic for want of memory with 96 MiB and reach
init with 128 (measured under TCG).
"""
ON_STOP = ("shutdown", "suspend")


MIN_DISK_MIB = 256
DRIVER_CONFIG_SCHEMA: Mapping[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "on_stop": {
            "enum": list(ON_STOP),
            "description": "what a stop does; the operator's on_stop by default",
        },
        "from_snapshot": {
            "type": "string",
            "pattern": f"^[^/]+/{_SNAPSHOT_NAME.pattern}$",
            "description": "SANDBOX/NAME: start from the disk of that snapshot",
        },
        "disk_mib": {
            "type": "integer",
            "minimum": MIN_DISK_MIB,
            "description": "size of the root disk, MiB; the operator's by default",
        },
        KEY: DEVICES_SCHEMA,
        "volumes": volume.SCHEMA,
        host_mount.KEY: host_mount.SCHEMA,
        **THROTTLE_SCHEMAS,
        **EGRESS_SCHEMAS,
    },
}
"""JSON Schema of template.driver_config but for what is said to extensions, for people and
programs; the check below decides.
"""


def driver_config_schema(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """With what requests may say to each extension: JSON Schemas by name."""
    blocks = {
        "type": "object",
        "additionalProperties": False,
        "properties": dict(parameters),
        "description": "parameters of extensions, by name",
    }
    properties = {**DRIVER_CONFIG_SCHEMA["properties"], "extensions": blocks}
    return {**DRIVER_CONFIG_SCHEMA, "properties": properties}


def check_driver_config(config: Mapping[str, Any]) -> None:
    """InvalidRequest for an unknown key or a wrong value, with the key's path."""
    for key, value in config.items():
        path = f"template.driver_config.{key}"
        known = DRIVER_CONFIG_SCHEMA["properties"]
        if key == "extensions":
            if not isinstance(value, Mapping):
                raise InvalidRequest(path, "must be an object")
            continue  # whoever they are for checks them
        if key not in known:
            raise InvalidRequest(
                path,
                "is not a key of this driver",
                resolution=f"known keys: {', '.join(known)}, extensions",
            )
        _check_value(key, value, path)


def _check_value(key: str, value: Any, path: str) -> None:
    if key in {*THROTTLE_SCHEMAS, *EGRESS_SCHEMAS, KEY, "volumes", host_mount.KEY}:
        return  # each has a check of its own, which knows what the operator allows
    if key == "disk_mib":
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidRequest(path, "must be a whole number of MiB")
        return
    if not isinstance(value, str):
        raise InvalidRequest(path, f"must be a string, not {type(value).__name__}")
    if key == "on_stop" and value not in ON_STOP:
        raise InvalidRequest(path, f"must be one of {', '.join(ON_STOP)}")
    if key == "from_snapshot":
        split_snapshot(value, path)


def stop_mode(spec: SandboxSpec, settings: Settings) -> str:
    """What StopSandbox does with this one: the request's word, or the operator's; the state of
    devices, and of who reads the host's folders, cannot be kept.
    """
    if wanted_devices(spec) or host_mount.wishes_of(spec):
        return "shutdown"
    return str(spec.driver_config.get("on_stop", settings.on_stop))


def check_numbers(value: Any, path: str) -> None:
    """InvalidRequest where a Struct holds a number that is no exact integer (its
    numbers are doubles).
    """
    if isinstance(value, float) and not (
        math.isfinite(value) and value.is_integer() and abs(value) <= 2**53
    ):
        raise InvalidRequest(path, "must be an integer")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_numbers(inner, f"{path}.{key}")
    if isinstance(value, list):
        for index, inner in enumerate(value):
            check_numbers(inner, f"{path}[{index}]")


def _check_size(spec: SandboxSpec, settings: Settings) -> None:
    vcpus, memory_mib, _ = size_of(spec.resources, settings)
    if vcpus > settings.max_vcpus:
        raise InvalidRequest(
            "template.resources.cpu_limit",
            f"{vcpus} vCPUs are above the operator's maximum {settings.max_vcpus}",
        )
    if memory_mib > settings.max_memory_mib:
        raise InvalidRequest(
            "template.resources.memory_limit",
            f"{memory_mib} MiB are above the operator's maximum "
            f"{settings.max_memory_mib}",
        )
    disk = disk_mib(spec, settings)
    if "disk_mib" in spec.driver_config and not (
        MIN_DISK_MIB <= disk <= settings.max_disk_mib
    ):
        raise InvalidRequest(
            "template.driver_config.disk_mib",
            f"{disk} MiB are not within {MIN_DISK_MIB} and the operator's maximum "
            f"{settings.max_disk_mib}",
        )
    if memory_mib < MIN_MEMORY_MIB:
        raise InvalidRequest(
            "template.resources.memory_limit",
            f"{memory_mib} MiB are too few: a guest needs {MIN_MEMORY_MIB}",
        )


def check(spec: SandboxSpec, settings: Settings) -> None:
    """Everything that can be said of a request alone."""
    if not spec.image:
        raise Refused(
            "template.image: no image is named and the driver has no default image",
            reason="ImageMissing",
            resolution="name an image, or set default_image",
        )
    for name, value in spec.environment.items():
        check_environment_name(name, "spec.environment")
        if "\0" in value:
            raise InvalidRequest(
                f"spec.environment[{name!r}]",
                "holds a NUL character, which no process can be given",
            )
    for index, argument in enumerate(spec.command):
        if "\0" in argument:
            raise InvalidRequest(
                f"spec.command[{index}]",
                "holds a NUL character, which no process can be given",
            )
    if spec.command and not spec.command[0]:
        raise InvalidRequest("spec.command[0]", "is empty: it names the program to run")
    check_driver_config(spec.driver_config)
    check_throttles(spec.driver_config, settings)
    check_devices(spec, settings)
    volume.wishes_of(spec)
    check_host_mounts(spec, settings)
    check_egress(spec.driver_config, ipv6=settings.egress_ipv6)
    _check_size(spec, settings)
    check_passable(environment(spec, settings, has_token=True))


def check_count(others: int, settings: Settings) -> None:
    """Exhausted when there are as many other sandboxes as there may be in all."""
    if others >= settings.max_sandboxes:
        raise Exhausted(
            f"max_sandboxes: there are {others} sandboxes, the limit is "
            f"{settings.max_sandboxes}",
            reason="SandboxLimit",
            resolution="delete sandboxes or raise the limit",
        )
