"""The command line's side of vmdriver.admin.v1.Volumes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc

from vmdriver._proto import admin_pb2 as pb
from vmdriver._proto import admin_pb2_grpc as pb_grpc
from vmdriver.errors import DriverError
from vmdriver.service.admin_client import plain, stub_of

_DEADLINE_S = 150.0
Pieces = Iterable[tuple[int, bytes]]
"""Offset and content."""


def all_of(path: Path) -> list[dict[str, Any]]:
    """As protobuf's JSON mapping has them. DriverError with the driver's words."""
    with stub_of(path, pb_grpc.VolumesStub) as stub:
        found = stub.ListVolumes(pb.ListVolumesRequest(), timeout=_DEADLINE_S)
    return [plain(volume) for volume in found.volumes]


def create(path: Path, workspace: str, name: str, size_mib: int) -> dict[str, Any]:
    """Returns when it is durable."""
    request = pb.CreateVolumeRequest(workspace=workspace, name=name, size_mib=size_mib)
    with stub_of(path, pb_grpc.VolumesStub) as stub:
        return plain(stub.CreateVolume(request, timeout=_DEADLINE_S))


def remove(path: Path, workspace: str, name: str) -> None:
    """Returns when it is gone."""
    request = pb.RemoveVolumeRequest(workspace=workspace, name=name)
    with stub_of(path, pb_grpc.VolumesStub) as stub:
        stub.RemoveVolume(request, timeout=_DEADLINE_S)


def grow(path: Path, workspace: str, name: str, size_mib: int) -> dict[str, Any]:
    """Returns when it is durable."""
    request = pb.GrowVolumeRequest(workspace=workspace, name=name, size_mib=size_mib)
    with stub_of(path, pb_grpc.VolumesStub) as stub:
        return plain(stub.GrowVolume(request, timeout=_DEADLINE_S))


def receive(
    path: Path, workspace: str, name: str, size_mib: int, pieces: Pieces
) -> dict[str, Any]:
    """Returns when it is durable; what reading `pieces` raises leaves none."""
    wanted = pb.CreateVolumeRequest(workspace=workspace, name=name, size_mib=size_mib)
    failed: list[Exception] = []

    def messages() -> Iterator[pb.ImportVolumePiece]:
        yield pb.ImportVolumePiece(volume=wanted)
        try:
            for offset, data in pieces:
                piece = pb.VolumePiece(offset=offset, data=data)
                yield pb.ImportVolumePiece(piece=piece)
        except (OSError, DriverError) as error:
            # Without a last one, the driver takes none of it.
            failed.append(error)
            return
        yield pb.ImportVolumePiece(last=True)

    with stub_of(path, pb_grpc.VolumesStub) as stub:
        try:
            return plain(stub.ImportVolume(messages()))
        except grpc.RpcError:
            if failed:
                raise failed[0] from None
            raise


def content(
    path: Path, workspace: str, name: str, snapshot: str = ""
) -> Iterator[tuple[int, bytes]]:
    """Offset and content; the last one is empty, at the end of the disk. `snapshot`: SANDBOX/NAME,
    to have it as it was there.
    """
    request = pb.ExportVolumeRequest(workspace=workspace, name=name, snapshot=snapshot)
    with stub_of(path, pb_grpc.VolumesStub) as stub:
        for piece in stub.ExportVolume(request):
            yield piece.offset, piece.data
