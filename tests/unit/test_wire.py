"""The encoded bytes of one full example of every message, and every method's name: what gateways rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from vmdriver._proto import compute_driver_pb2 as pb

VALUES = {
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_INT64: 1234567890123,
    FieldDescriptor.CPPTYPE_UINT32: 2,
    FieldDescriptor.CPPTYPE_INT32: 7,
}


def fill(message: Any, depth: int = 0) -> Any:
    """Set every field (of a oneof, the first) to an example value."""
    seen_oneofs = set()
    for field in message.DESCRIPTOR.fields:
        oneof = field.containing_oneof
        if oneof is not None and not field.has_presence:
            continue
        if oneof is not None and len(oneof.fields) > 1:
            if oneof.name in seen_oneofs:
                continue
            seen_oneofs.add(oneof.name)
        fill_field(message, field, depth)
    return message


def fill_field(message: Any, field: Any, depth: int) -> None:
    if (
        field.message_type is not None
        and field.message_type.full_name == "google.protobuf.Struct"
    ):
        getattr(message, field.name).update({"key": "value"})
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)["key"] = "value"
    elif field.message_type is not None:
        target = getattr(message, field.name)
        if depth < 8:
            fill(target.add() if field.is_repeated else target, depth + 1)
            if not field.is_repeated:
                target.SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).append("text")
    else:
        setattr(message, field.name, VALUES[field.cpp_type])


def test_every_messages_bytes_are_pinned(golden: Callable[[str, str], None]) -> None:
    pinned = {
        name: fill(getattr(pb, name)()).SerializeToString(deterministic=True).hex()
        for name in sorted(pb.DESCRIPTOR.message_types_by_name)
    }
    assert len(pinned) == 40
    golden("wire.json", json.dumps(pinned, indent=1) + "\n")


def test_the_service_is_the_contracts() -> None:
    service = pb.DESCRIPTOR.services_by_name["ComputeDriver"]
    assert service.full_name == "openshell.compute.v1.ComputeDriver"
    assert [m.name for m in service.methods] == [
        "GetCapabilities",
        "GetGatewayListenerRequirements",
        "ValidateSandboxCreate",
        "GetSandbox",
        "ListSandboxes",
        "CreateSandbox",
        "StopSandbox",
        "StartSandbox",
        "DeleteSandbox",
        "WatchSandboxes",
        "EnsureWorkspace",
        "DeleteWorkspace",
    ]
    assert [m.name for m in service.methods if m.server_streaming] == ["WatchSandboxes"]
    for method in service.methods:
        assert method.input_type.name == f"{method.name}Request"


def test_known_bytes_by_hand() -> None:
    """Field numbers and wire types written out, not taken from our own encoder."""
    sandbox = pb.DriverSandbox(
        id="a",
        name="b",
        workspace="w",
        spec=pb.DriverSandboxSpec(sandbox_token="t", tty=True),
    )
    assert (
        sandbox.SerializeToString()
        == b"\x0a\x01a\x12\x01b\x22\x05\x5a\x01t\x68\x01\x32\x01w"
    )
    condition = pb.DriverCondition(
        type="Ready", status="True", last_transition_time="x"
    )
    condition.transition_time.seconds = 1
    assert (
        condition.SerializeToString()
        == b"\x0a\x05Ready\x12\x04True\x2a\x01x\xca\x06\x02\x08\x01"
    )
    event = pb.DriverPlatformEvent(timestamp_ms=5)
    event.event_time.seconds = 1
    assert event.SerializeToString() == b"\x08\x05\xaa\x06\x02\x08\x01"
    assert (
        pb.GetCapabilitiesResponse(gateway_manages_lifecycle=True).SerializeToString()
        == b"\x30\x01"
    )
    assert pb.GetCapabilitiesRequest.FromString(b"\x0a\x02\x08\x01").HasField("gateway")


def test_unknown_fields_of_later_gateways_are_ignored() -> None:
    known = pb.GetSandboxRequest(sandbox_id="a").SerializeToString()
    assert pb.GetSandboxRequest.FromString(known + b"\xf2\x3f\x03abc").sandbox_id == "a"


def test_both_generations_times_are_sent() -> None:
    from datetime import UTC, datetime

    from vmdriver.model.condition import Condition, PlatformEvent
    from vmdriver.service import codec

    moment = datetime(2026, 1, 2, 3, 4, 5, 678000, UTC)
    condition = codec.encode_condition(
        Condition("Ready", "True", "Running", "", moment)
    )
    assert condition.last_transition_time == "2026-01-02T03:04:05.678000Z"
    assert condition.transition_time.ToDatetime(UTC) == moment
    event = codec.encode_event(PlatformEvent("R", "m", moment))
    assert event.timestamp_ms == event.event_time.ToMilliseconds() == 1767323045678
