"""Pictures of a driver as vmdriver.admin.v1 sends them, and back."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf import timestamp_pb2

from vmdriver._proto import admin_pb2 as pb
from vmdriver.host.visible import visible
from vmdriver.model.condition import PlatformEvent
from vmdriver.model.picture import (
    Picture,
    SeenEvent,
    SeenSandbox,
    SeenTemplate,
    Totals,
)
from vmdriver.model.usage import Usage
from vmdriver.service.codec import timestamp

_USE = {
    "run": "run",
    "cpu_seconds": "cpu_s",
    "memory_bytes": "memory",
    "own_bytes": "own",
    "shared_bytes": "shared",
    "read_bytes": "read",
    "written_bytes": "written",
    "received_bytes": "received",
    "sent_bytes": "sent",
}
"""Field of the message -> of the value."""
_TOTALS = {
    "committed_bytes": "committed",
    "memory_limit_bytes": "memory_limit",
    "sandbox_limit": "sandbox_limit",
    "disk_free_bytes": "disk_free",
    "addresses_left": "addresses_left",
}


def encode_picture(picture: Picture) -> pb.Picture:
    """As it is sent."""
    totals = {key: getattr(picture.totals, name) for key, name in _TOTALS.items()}
    return pb.Picture(
        time=timestamp(picture.at),
        driver_version=picture.version,
        used_at_seconds=picture.used_at,
        sandboxes=[_encode_sandbox(seen) for seen in picture.sandboxes],
        templates=[_encode_template(seen) for seen in picture.templates],
        events=[_encode_event(seen) for seen in picture.events],
        **totals,
    )


def _encode_sandbox(seen: SeenSandbox) -> pb.SeenSandbox:
    found = pb.SeenSandbox(
        id=seen.id,
        name=seen.name,
        workspace=seen.workspace,
        phase=seen.phase,
        intent=seen.intent,
        reason=seen.reason,
        message=visible(seen.message, "\n"),
        since=timestamp(seen.since),
        created=timestamp(seen.created),
        stored_bytes=seen.stored,
    )
    if seen.usage is not None:
        use = {key: getattr(seen.usage, name) for key, name in _USE.items()}
        found.use.CopyFrom(pb.MachineUse(**use))
    return found


def _encode_template(seen: SeenTemplate) -> pb.Template:
    return pb.Template(
        key=seen.key,
        image_digest=seen.image_digest,
        vcpus=seen.vcpus,
        memory_mib=seen.memory_mib,
        stored_bytes=seen.stored,
        waiting=seen.waiting,
    )


def _encode_event(seen: SeenEvent) -> pb.SeenEvent:
    return pb.SeenEvent(
        sandbox=seen.sandbox_id,
        time=timestamp(seen.event.at),
        reason=seen.event.reason,
        message=visible(seen.event.message, "\n"),
        warning=seen.event.type == "Warning",
    )


def decode_picture(sent: pb.Picture) -> Picture:
    """What was encoded."""
    totals = {name: getattr(sent, key) for key, name in _TOTALS.items()}
    return Picture(
        at=_moment(sent.time),
        version=sent.driver_version,
        used_at=sent.used_at_seconds,
        sandboxes=tuple(_decode_sandbox(seen) for seen in sent.sandboxes),
        templates=tuple(_decode_template(seen) for seen in sent.templates),
        events=tuple(_decode_event(seen) for seen in sent.events),
        totals=Totals(**totals),
    )


def _decode_sandbox(sent: pb.SeenSandbox) -> SeenSandbox:
    usage = None
    if sent.HasField("use"):
        usage = Usage(**{name: getattr(sent.use, key) for key, name in _USE.items()})
    return SeenSandbox(
        id=sent.id,
        name=sent.name,
        workspace=sent.workspace,
        phase=sent.phase,
        intent=sent.intent,
        reason=sent.reason,
        message=sent.message,
        since=_moment(sent.since),
        created=_moment(sent.created),
        usage=usage,
        stored=sent.stored_bytes,
    )


def _decode_template(sent: pb.Template) -> SeenTemplate:
    return SeenTemplate(
        key=sent.key,
        image_digest=sent.image_digest,
        vcpus=sent.vcpus,
        memory_mib=sent.memory_mib,
        stored=sent.stored_bytes,
        waiting=sent.waiting,
    )


def _decode_event(sent: pb.SeenEvent) -> SeenEvent:
    kind = "Warning" if sent.warning else "Normal"
    event = PlatformEvent(sent.reason, sent.message, _moment(sent.time), kind)
    return SeenEvent(sent.sandbox, event)


def _moment(stamp: timestamp_pb2.Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)
