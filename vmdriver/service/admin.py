"""vmdriver.admin.v1.Admin: what the vmdriver command asks of a running driver."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from google.protobuf import timestamp_pb2

from vmdriver._proto import admin_pb2 as pb
from vmdriver._proto import admin_pb2_grpc as pb_grpc
from vmdriver.host.visible import visible
from vmdriver.lifecycle.control.checks import driver_config_schema
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.engine.broadcast import Broadcaster, Happened
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.extending.draft import PLAN_POINTS
from vmdriver.lifecycle.extending.hooks import HOOKS
from vmdriver.lifecycle.extending.notes import is_extensions
from vmdriver.lifecycle.ports.images import ImageProgress
from vmdriver.lifecycle.templates.template import Template
from vmdriver.model.checkpoint import SnapshotEntry
from vmdriver.model.picture import Picture
from vmdriver.service.capabilities import encode, encode_held
from vmdriver.service.codec import timestamp
from vmdriver.service.image_messages import (
    encode_image,
    encode_progress,
    encode_removed,
)
from vmdriver.service.pictures import encode_picture
from vmdriver.service.servicer import Readiness

_LEAST_INTERVAL_S = 1.0


def register(service: Admin, server: Any) -> None:
    """Serve it."""
    pb_grpc.add_AdminServicer_to_server(service, server)


class Admin(pb_grpc.AdminServicer):
    """The service. Errors are raised; the interceptor turns them into status codes. `picture`:
    looks at the whole driver, once for all who ask at a time.
    """

    def __init__(
        self,
        readiness: Readiness,
        broadcaster: Broadcaster,
        picture: Callable[[], Awaitable[Picture]],
    ) -> None:
        self._readiness = readiness
        self._broadcaster = broadcaster
        self._picture = picture

    async def _operations(self) -> Operations:
        return Operations(await self._readiness.manager())

    async def Suspend(
        self, request: pb.SuspendRequest, context: Any
    ) -> AsyncIterator[pb.Progress]:
        """Ends when it is suspended."""
        operations = await self._operations()
        worker = operations.find(request.sandbox)
        async for event in self._told(worker, operations.suspend(worker)):
            yield event

    async def Resume(
        self, request: pb.ResumeRequest, context: Any
    ) -> AsyncIterator[pb.Progress]:
        """Ends when it runs."""
        operations = await self._operations()
        worker = operations.find(request.sandbox)
        work = operations.resume(worker, cold=request.cold)
        async for event in self._told(worker, work):
            yield event

    async def CreateSnapshot(
        self, request: pb.CreateSnapshotRequest, context: Any
    ) -> AsyncIterator[pb.Progress]:
        """Ends when the snapshot is durable."""
        operations = await self._operations()
        worker = operations.find(request.sandbox)
        what = {"disk_only": request.disk_only, "volumes": request.volumes}
        work = operations.create_snapshot(worker, request.name, **what)
        async for event in self._told(worker, work):
            yield event

    async def RestoreSnapshot(
        self, request: pb.RestoreSnapshotRequest, context: Any
    ) -> AsyncIterator[pb.Progress]:
        """Ends when the sandbox runs."""
        operations = await self._operations()
        worker = operations.find(request.sandbox)
        work = operations.restore_snapshot(
            worker, request.name, volumes=request.volumes
        )
        async for event in self._told(worker, work):
            yield event

    async def ListSnapshots(
        self, request: pb.ListSnapshotsRequest, context: Any
    ) -> pb.ListSnapshotsResponse:
        """Oldest first."""
        operations = await self._operations()
        entries = operations.snapshots(operations.find(request.sandbox))
        return pb.ListSnapshotsResponse(
            snapshots=[_encode_snapshot(e) for e in entries]
        )

    async def DeleteSnapshot(
        self, request: pb.DeleteSnapshotRequest, context: Any
    ) -> pb.DeleteSnapshotResponse:
        """NOT_FOUND for one that is not there."""
        operations = await self._operations()
        worker = operations.find(request.sandbox)
        await operations.delete_snapshot(worker, request.name)
        return pb.DeleteSnapshotResponse()

    async def ListTemplates(
        self, request: pb.ListTemplatesRequest, context: Any
    ) -> pb.ListTemplatesResponse:
        """Those that can be used."""
        manager = await self._readiness.manager()
        count = manager.warm_pool.count
        found = [_encode_template(t, count(t.key)) for t in manager.templates.listed()]
        return pb.ListTemplatesResponse(templates=found)

    async def DeleteTemplate(
        self, request: pb.DeleteTemplateRequest, context: Any
    ) -> pb.DeleteTemplateResponse:
        """NOT_FOUND for one that is not there."""
        await (await self._readiness.manager()).templates.remove(request.key)
        return pb.DeleteTemplateResponse()

    async def ListImages(
        self, request: pb.ListImagesRequest, context: Any
    ) -> pb.ListImagesResponse:
        """Those asked for last first."""
        images = (await self._readiness.manager()).images
        found = sorted(await images.known(), key=lambda i: i.used, reverse=True)
        needed = await images.in_use()
        encoded = [encode_image(i, in_use=i.disk.path in needed) for i in found]
        return pb.ListImagesResponse(images=encoded)

    async def PrefetchImage(
        self, request: pb.PrefetchImageRequest, context: Any
    ) -> AsyncIterator[pb.Progress]:
        """Ends when it is there. If the client goes away and nobody else waits, so does the
        work.
        """
        images = (await self._readiness.manager()).images
        queue: asyncio.Queue[ImageProgress | None] = asyncio.Queue()
        work = asyncio.ensure_future(
            images.prefetch(request.reference, queue.put_nowait, again=True)
        )
        work.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (progress := await queue.get()) is not None:
                yield encode_progress(progress)
            await work
        finally:
            work.cancel()

    async def CollectImages(
        self, request: pb.CollectImagesRequest, context: Any
    ) -> pb.CollectImagesResponse:
        """Now, by the operator's limits."""
        images = (await self._readiness.manager()).images
        removed = await images.collect(dry_run=request.dry_run)
        return pb.CollectImagesResponse(files=[encode_removed(f) for f in removed])

    async def Observe(
        self, request: pb.ObserveRequest, context: Any
    ) -> AsyncIterator[pb.Picture]:
        """Until one of both ends. A client that is slow gets fewer."""
        await self._readiness.manager()
        interval_s = max(request.interval_ms / 1000, _LEAST_INTERVAL_S)
        while True:
            yield encode_picture(await self._picture())
            if await self._broadcaster.closed_within(interval_s):
                return

    async def GetExtensionCapabilities(
        self, request: pb.GetExtensionCapabilitiesRequest, context: Any
    ) -> pb.GetExtensionCapabilitiesResponse:
        """Of both kinds."""
        manager = await self._readiness.manager()
        workers = list(manager.sandboxes.workers.values())
        active = {
            w.sandbox.record.id: w.sandbox.record.extensions.active for w in workers
        }
        held = [held for worker in workers for held in _held(worker)]
        return encode(
            manager.extensions, PLAN_POINTS, active, held, driver_config_schema, HOOKS
        )

    async def _told(
        self, worker: Worker, work: Awaitable[None]
    ) -> AsyncIterator[pb.Progress]:
        """The sandbox's events while `work` is done. It goes on if the client goes away."""
        subscription = self._broadcaster.subscribe()
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: subscription.close())
        try:
            while (notice := await subscription.next()) is not None:
                if not isinstance(notice, Happened):
                    continue
                if notice.sandbox_id == worker.sandbox.record.id:
                    event = notice.event
                    yield pb.Progress(
                        time=timestamp(event.at),
                        reason=event.reason,
                        message=visible(event.message, "\n"),
                        warning=event.type == "Warning",
                    )
            await asyncio.shield(task)
        finally:
            self._broadcaster.unsubscribe(subscription)
            if not task.done():
                task.add_done_callback(_consume)


def _held(worker: Worker) -> list[pb.Held]:
    sandbox = worker.sandbox
    entries = [e for e in sandbox.ledger.held() if is_extensions(e.key)]
    name, problem = sandbox.record.id, sandbox.owed
    return [
        encode_held(name, entry, orphan=sandbox.owes(entry), problem=problem)
        for entry in entries
    ]


def _consume(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()


def _encode_template(template: Template, waiting: int) -> pb.Template:
    manifest = template.manifest
    return pb.Template(
        key=template.key,
        image_digest=manifest.plan.image_digest,
        vcpus=manifest.plan.vcpus,
        memory_mib=manifest.plan.memory_mib,
        workspace=manifest.workspace,
        stored_bytes=manifest.stored_bytes,
        waiting=waiting,
        created=timestamp(manifest.created_at),
        used=timestamp(template.used_at),
    )


def _encode_snapshot(entry: SnapshotEntry) -> pb.Snapshot:
    created: timestamp_pb2.Timestamp = timestamp(entry.created_at)
    return pb.Snapshot(
        name=entry.name,
        created=created,
        memory=entry.memory is not None,
        memory_bytes=entry.memory.stored_bytes if entry.memory else 0,
        disk_bytes=entry.disk_bytes,
        layers=entry.layers,
        volumes=[
            pb.SnapshotVolume(
                name=copy.name, size_mib=copy.size_mib, stored_bytes=copy.stored_bytes
            )
            for copy in entry.volumes
        ],
    )
