"""The command line's side of the admin socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from vmdriver._proto import admin_pb2 as pb
from vmdriver._proto import admin_pb2_grpc as pb_grpc
from vmdriver.service.client import refusal

_DEADLINE_S = 60.0
Tell = Callable[[str, str, bool], None]
"""Takes an event: reason, message, whether it is a warning."""


@contextmanager
def stub_of(path: Path, kind: Callable[[grpc.Channel], Any]) -> Iterator[Any]:
    """One of that service; what the driver refuses is a DriverError."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        try:
            yield kind(channel)
        except grpc.RpcError as error:
            raise refusal(path, error) from error


def _follow(events: Iterable[pb.Progress], tell: Tell) -> None:
    for event in events:
        tell(event.reason, event.message, event.warning)


def suspend(path: Path, sandbox: str, tell: Tell) -> None:
    """Returns when it is suspended. DriverError with the driver's words."""
    with stub_of(path, pb_grpc.AdminStub) as stub:
        _follow(stub.Suspend(pb.SuspendRequest(sandbox=sandbox)), tell)


def resume(path: Path, sandbox: str, cold: bool, tell: Tell) -> None:
    """Returns when it runs."""
    with stub_of(path, pb_grpc.AdminStub) as stub:
        _follow(stub.Resume(pb.ResumeRequest(sandbox=sandbox, cold=cold)), tell)


def create_snapshot(
    path: Path,
    sandbox: str,
    name: str,
    disk_only: bool,
    tell: Tell,
    *,
    volumes: bool = False,
) -> None:
    """Returns when it is durable."""
    request = pb.CreateSnapshotRequest(
        sandbox=sandbox, name=name, disk_only=disk_only, volumes=volumes
    )
    with stub_of(path, pb_grpc.AdminStub) as stub:
        _follow(stub.CreateSnapshot(request), tell)


def restore_snapshot(
    path: Path, sandbox: str, name: str, tell: Tell, *, volumes: bool = False
) -> None:
    """Returns when the sandbox runs."""
    request = pb.RestoreSnapshotRequest(sandbox=sandbox, name=name, volumes=volumes)
    with stub_of(path, pb_grpc.AdminStub) as stub:
        _follow(stub.RestoreSnapshot(request), tell)


def delete_snapshot(path: Path, sandbox: str, name: str) -> None:
    """Returns when it is gone."""
    request = pb.DeleteSnapshotRequest(sandbox=sandbox, name=name)
    with stub_of(path, pb_grpc.AdminStub) as stub:
        stub.DeleteSnapshot(request, timeout=_DEADLINE_S)


def list_images(path: Path) -> list[dict[str, Any]]:
    """As protobuf's JSON mapping has them."""
    with stub_of(path, pb_grpc.AdminStub) as stub:
        found = stub.ListImages(pb.ListImagesRequest(), timeout=_DEADLINE_S)
    return [plain(image) for image in found.images]


def prefetch_image(
    path: Path, reference: str, tell: Callable[[pb.Progress], None]
) -> None:
    """Returns when it is there."""
    with stub_of(path, pb_grpc.AdminStub) as stub:
        for event in stub.PrefetchImage(pb.PrefetchImageRequest(reference=reference)):
            tell(event)


def collect_images(path: Path, *, dry_run: bool) -> list[dict[str, Any]]:
    """What went, or would."""
    request = pb.CollectImagesRequest(dry_run=dry_run)
    with stub_of(path, pb_grpc.AdminStub) as stub:
        found = stub.CollectImages(request, timeout=_DEADLINE_S)
    return [plain(file) for file in found.files]


def list_snapshots(path: Path, sandbox: str) -> list[dict[str, Any]]:
    """As protobuf's JSON mapping has them."""
    with stub_of(path, pb_grpc.AdminStub) as stub:
        request = pb.ListSnapshotsRequest(sandbox=sandbox)
        answer = stub.ListSnapshots(request, timeout=_DEADLINE_S)
    return [plain(entry) for entry in answer.snapshots]


def list_templates(path: Path) -> list[dict[str, Any]]:
    """The same of templates."""
    with stub_of(path, pb_grpc.AdminStub) as stub:
        answer = stub.ListTemplates(pb.ListTemplatesRequest(), timeout=_DEADLINE_S)
    return [plain(entry) for entry in answer.templates]


def delete_template(path: Path, key: str) -> None:
    """Returns when it is gone."""
    with stub_of(path, pb_grpc.AdminStub) as stub:
        stub.DeleteTemplate(pb.DeleteTemplateRequest(key=key), timeout=_DEADLINE_S)


def extension_capabilities(path: Path) -> dict[str, Any]:
    """Of any driver that serves vmdriver.admin.v1; schemas as objects."""
    with stub_of(path, pb_grpc.AdminStub) as stub:
        request = pb.GetExtensionCapabilitiesRequest()
        answer = stub.GetExtensionCapabilities(request, timeout=_DEADLINE_S)
    found = plain(answer)
    found["driver_config_schema"] = _schema(found["driver_config_schema"])
    for extension in found["extensions"]:
        for key in ("parameters_schema", "configuration_schema"):
            extension[key] = _schema(extension[key])
    return found


def _schema(text: str) -> Any:
    return json.loads(text) if text else None


def plain(message: Any) -> dict[str, Any]:
    """As protobuf's JSON mapping has it, with numbers as numbers."""
    found = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return _with_numbers(found)


def _with_numbers(found: dict[str, Any]) -> dict[str, Any]:
    """The mapping writes 64-bit numbers as text, also in what is in a list."""
    for key, value in found.items():
        if isinstance(value, str) and key.endswith(("_bytes", "_mib")):
            found[key] = int(value)
        elif isinstance(value, list):
            found[key] = [
                _with_numbers(each) if isinstance(each, dict) else each
                for each in value
            ]
    return found
