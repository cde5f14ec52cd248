"""vmdriver.admin.v1.Volumes: what the vmdriver command asks about volumes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from vmdriver._proto import admin_pb2 as pb
from vmdriver._proto import admin_pb2_grpc as pb_grpc
from vmdriver.errors import InvalidRequest
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.control.volume_jobs import SeenVolume, VolumeJobs
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.service.codec import timestamp
from vmdriver.service.servicer import Readiness


def register(service: Volumes, server: Any) -> None:
    """Serve it."""
    pb_grpc.add_VolumesServicer_to_server(service, server)


class Volumes(pb_grpc.VolumesServicer):
    """The service. Errors are raised; the interceptor turns them into status codes."""

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def _jobs(self) -> VolumeJobs:
        return (await self._readiness.manager()).volume_jobs

    async def ListVolumes(
        self, request: pb.ListVolumesRequest, context: Any
    ) -> pb.ListVolumesResponse:
        """Those that cannot be read are the last."""
        jobs = await self._jobs()
        found = [_encode(seen) for seen in await jobs.all()]
        problems = jobs.volumes.unreadable.items()
        found += [pb.Volume(name=name, problem=text) for name, text in problems]
        return pb.ListVolumesResponse(volumes=found)

    async def CreateVolume(
        self, request: pb.CreateVolumeRequest, context: Any
    ) -> pb.Volume:
        """ALREADY_EXISTS, RESOURCE_EXHAUSTED."""
        jobs = await self._jobs()
        wanted = request.workspace, request.name, request.size_mib
        return _encode(await jobs.create(*wanted))

    async def RemoveVolume(
        self, request: pb.RemoveVolumeRequest, context: Any
    ) -> pb.RemoveVolumeResponse:
        """FAILED_PRECONDITION while a sandbox has it."""
        await (await self._jobs()).remove(request.workspace, request.name)
        return pb.RemoveVolumeResponse()

    async def GrowVolume(
        self, request: pb.GrowVolumeRequest, context: Any
    ) -> pb.Volume:
        """FAILED_PRECONDITION while a sandbox has it."""
        jobs = await self._jobs()
        wanted = request.workspace, request.name, request.size_mib
        return _encode(await jobs.grow(*wanted))

    async def ImportVolume(
        self, requests: AsyncIterator[pb.ImportVolumePiece], context: Any
    ) -> pb.Volume:
        """A client that goes away leaves nothing."""
        jobs = await self._jobs()
        first = await anext(aiter(requests), pb.ImportVolumePiece())
        wanted = first.volume
        pieces = _pieces(first, requests)
        seen = await jobs.receive(
            wanted.workspace, wanted.name, wanted.size_mib, pieces
        )
        return _encode(seen)

    async def ExportVolume(
        self, request: pb.ExportVolumeRequest, context: Any
    ) -> AsyncIterator[pb.VolumePiece]:
        """FAILED_PRECONDITION while a sandbox may write to it; out of a snapshot, always."""
        jobs = await self._jobs()
        if request.snapshot:
            operations = Operations(await self._readiness.manager())
            found = operations.volume_of_snapshot(request.snapshot, request.name)
        else:
            found = jobs.content(request.workspace, request.name)
        async for piece in found:
            yield pb.VolumePiece(offset=piece.offset, data=piece.data)


async def _pieces(
    first: pb.ImportVolumePiece, rest: AsyncIterator[pb.ImportVolumePiece]
) -> AsyncIterator[Piece]:
    """InvalidRequest where the last one is missing."""
    part = first
    while not part.last:
        if part.piece.data:
            yield Piece(part.piece.offset, part.piece.data)
        following = await anext(aiter(rest), None)
        if following is None:
            raise InvalidRequest("piece", "the content has no end")
        part = following


def _encode(seen: SeenVolume) -> pb.Volume:
    volume = seen.volume
    return pb.Volume(
        workspace=volume.workspace,
        name=volume.name,
        size_mib=volume.size_mib,
        stored_bytes=seen.stored_bytes,
        created=timestamp(volume.created_at),
        sandboxes=seen.sandboxes,
        read_only=bool(seen.sandboxes) and seen.read_only,
    )
