"""Messages to values and back. Every request is checked here, once; what comes out is
valid in shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format, timestamp_pb2
from pydantic import SecretStr

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.errors import InvalidRequest, Refused
from vmdriver.host.visible import visible
from vmdriver.lifecycle.control.checks import check_numbers
from vmdriver.lifecycle.engine.broadcast import Deleted, Happened
from vmdriver.model.condition import Condition, PlatformEvent, SandboxStatus
from vmdriver.model.ids import check_sandbox_id
from vmdriver.model.quantity import parse_resources
from vmdriver.model.spec import Resources, SandboxSpec

EVENT_SOURCE = "vm"
"""The gateway's command line renews its waiting time for events of this source
(contract §2.14).
"""
_MAX_NAME = 253


def _plain(value: Any) -> Any:
    """Struct numbers are doubles: whole ones become int."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


def _driver_config(template: pb.DriverSandboxTemplate) -> Mapping[str, Any]:
    if not template.HasField("driver_config"):
        return {}
    path = "template.driver_config"
    try:
        config = json_format.MessageToDict(template.driver_config)
    except ValueError as error:
        raise InvalidRequest(path, "holds a number that is not finite") from error
    check_numbers(config, path)
    return dict(_plain(config))


def _refuse_unsupported(spec: pb.DriverSandboxSpec) -> None:
    template = spec.template
    if template.agent_socket_path:
        raise Refused(
            "template.agent_socket_path: is not supported by this driver",
            resolution="leave it empty",
        )
    if template.HasField("platform_config") and template.platform_config.fields:
        keys = ", ".join(sorted(template.platform_config.fields)[:5])
        raise Refused(
            f"template.platform_config: {keys[:200]}: these settings are for "
            "other platforms than virtual machines",
            resolution="remove them, or use a driver for that platform",
        )


def _gpus(spec: pb.DriverSandboxSpec) -> int:
    """The message's presence asks for one."""
    required = spec.resource_requirements
    if not spec.HasField("resource_requirements") or not required.HasField("gpu"):
        return 0
    if not required.gpu.HasField("count"):
        return 1
    if required.gpu.count == 0:
        path = "spec.resource_requirements.gpu.count"
        raise InvalidRequest(path, "must be at least 1")
    return int(required.gpu.count)


def _resources(spec: pb.DriverSandboxSpec) -> Resources:
    asked = spec.template.resources
    found = parse_resources(
        asked.cpu_request, asked.cpu_limit, asked.memory_request, asked.memory_limit
    )
    return found.model_copy(update={"gpus": _gpus(spec)})


def _check_text(value: str, field: str, longest: int) -> str:
    if len(value) > longest:
        raise InvalidRequest(field, f"is longer than {longest} characters")
    if not value.isprintable():
        raise InvalidRequest(field, "holds control characters, or what cannot be shown")
    return value


def decode_sandbox(
    message: Any, default_image: str
) -> tuple[SandboxSpec, SecretStr | None]:
    """A create or validate request's content. InvalidRequest, Refused."""
    if not message.HasField("sandbox"):
        raise InvalidRequest("sandbox", "is missing")
    sandbox: pb.DriverSandbox = message.sandbox
    sandbox_id = check_sandbox_id(sandbox.id)
    name = _check_text(sandbox.name, "sandbox.name", _MAX_NAME)
    if not sandbox.HasField("spec"):
        raise InvalidRequest("sandbox.spec", "is missing")
    spec, template = sandbox.spec, sandbox.spec.template
    _refuse_unsupported(spec)
    value = SandboxSpec(
        id=sandbox_id,
        name=name,
        namespace=_check_text(sandbox.namespace, "sandbox.namespace", _MAX_NAME),
        workspace=_check_text(sandbox.workspace, "sandbox.workspace", _MAX_NAME),
        image=_check_text(template.image, "template.image", 1024) or default_image,
        log_level=_check_text(spec.log_level, "spec.log_level", 32),
        environment={**template.environment, **spec.environment},
        command=tuple(spec.command),
        tty=spec.tty,
        labels=dict(template.labels),
        resources=_resources(spec),
        driver_config=_driver_config(template),
    )
    return value, SecretStr(spec.sandbox_token) if spec.sandbox_token else None


def sandbox_from_json(
    text: str, default_image: str
) -> tuple[SandboxSpec, SecretStr | None]:
    """The same from a DriverSandbox in protobuf's JSON mapping."""
    request = pb.CreateSandboxRequest()
    try:
        json_format.Parse(text, request.sandbox)
    except json_format.ParseError as error:
        raise InvalidRequest("sandbox", str(error)) from error
    return decode_sandbox(request, default_image)


def timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    """In protobuf's own form."""
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def encode_condition(condition: Condition) -> pb.DriverCondition:
    """As the contract has it: the moment as a text, and as a timestamp."""
    moment = condition.changed_at.astimezone(UTC)
    return pb.DriverCondition(
        type=condition.type,
        status=condition.status,
        reason=condition.reason,
        message=visible(condition.message, "\n"),
        last_transition_time=moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        transition_time=timestamp(moment),
    )


def encode_status(status: SandboxStatus) -> pb.DriverSandbox:
    """A sandbox as the gateway is shown it; never its spec."""
    return pb.DriverSandbox(
        id=status.id,
        name=status.name,
        namespace=status.namespace,
        workspace=status.workspace,
        status=pb.DriverSandboxStatus(
            sandbox_name=status.name,
            instance_id=status.instance_id,
            conditions=[encode_condition(condition) for condition in status.conditions],
            deleting=status.deleting,
        ),
    )


def encode_event(event: PlatformEvent) -> pb.DriverPlatformEvent:
    """A platform event, with its time in both generations' fields."""
    return pb.DriverPlatformEvent(
        timestamp_ms=int(event.at.timestamp() * 1000),
        source=EVENT_SOURCE,
        type=event.type,
        reason=event.reason,
        message=visible(event.message, "\n"),
        metadata={key: visible(value) for key, value in event.metadata.items()},
        event_time=timestamp(event.at),
    )


def encode_answer(status: SandboxStatus) -> bytes:
    """What GetSandbox answers."""
    return _bytes(pb.GetSandboxResponse(sandbox=encode_status(status)))


def encode_entry(status: SandboxStatus) -> bytes:
    """A list of this one alone. Lists one after the other are one list of all: that is how
    protobuf's repeated fields are read.
    """
    return _bytes(pb.ListSandboxesResponse(sandboxes=[encode_status(status)]))


def encode_seen(status: SandboxStatus) -> bytes:
    """What watchers are told of a sandbox as it is now."""
    event = pb.WatchSandboxesEvent()
    event.sandbox.sandbox.CopyFrom(encode_status(status))
    return _bytes(event)


def encode_notice(notice: Deleted | Happened) -> bytes:
    """What else watchers are told."""
    event = pb.WatchSandboxesEvent()
    if isinstance(notice, Deleted):
        event.deleted.sandbox_id = notice.sandbox_id
    else:
        event.platform_event.sandbox_id = notice.sandbox_id
        event.platform_event.event.CopyFrom(encode_event(notice.event))
    return _bytes(event)


def _bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())
