"""openshell.compute.v1.ComputeDriver: each method decodes, asks the manager, encodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import message_factory

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.errors import InvalidRequest, Refused, Unavailable
from vmdriver.lifecycle.control.manager import Manager
from vmdriver.lifecycle.engine.broadcast import (
    Broadcaster,
    Changed,
    Notice,
)
from vmdriver.service import codec
from vmdriver.service.interceptor import trace_of
from vmdriver.service.kept import Kept

SUPPORTED_GATEWAYS = "v0.0.69 to v0.0.116"
_READY_WAIT_S = 30.0


@dataclass(frozen=True)
class Identity:
    """What GetCapabilities says. Known before anything else, so that a gateway gets its
    answer at once.
    """

    name: str
    version: str
    default_image: str
    gateway_manages_lifecycle: bool


class Readiness:
    """Holds calls back until recovery is done: an incomplete list would make the
    gateway forget sandboxes.
    """

    def __init__(self) -> None:
        self._manager: asyncio.Future[Manager] = (
            asyncio.get_running_loop().create_future()
        )

    def set(self, manager: Manager) -> None:
        """From now on calls go through."""
        self._manager.set_result(manager)

    @property
    def is_set(self) -> bool:
        """Whether it is."""
        return self._manager.done()

    async def manager(self) -> Manager:
        """The manager, once it has recovered. Unavailable if that takes too long."""
        if self._manager.done():  # every call but the first few: no timer, no shield
            return self._manager.result()
        try:
            async with asyncio.timeout(_READY_WAIT_S):
                return await asyncio.shield(self._manager)
        except TimeoutError as error:
            raise Unavailable("the driver is still starting") from error


def register(service: ComputeDriver, server: Any) -> None:
    """Serve it."""
    described = pb.DESCRIPTOR.services_by_name["ComputeDriver"]
    handlers = {
        m.name: _handler(m, getattr(service, m.name)) for m in described.methods
    }
    generic = grpc.method_handlers_generic_handler(described.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))


def _handler(method: Any, behavior: Any) -> Any:
    """As the generated code makes it, but for answers that are bytes already."""
    make = (
        grpc.unary_stream_rpc_method_handler
        if method.server_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    request = message_factory.GetMessageClass(method.input_type)
    return make(behavior, request.FromString, _as_bytes)


def _as_bytes(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else bytes(answer.SerializeToString())


class ComputeDriver(pb_grpc.ComputeDriverServicer):
    """The service. Errors are raised; the interceptor turns them into status codes. What many ask
    for again and again, or watch, is encoded once for all of them.
    """

    def __init__(
        self, identity: Identity, readiness: Readiness, broadcaster: Broadcaster
    ) -> None:
        self._identity = identity
        self._readiness = readiness
        self._broadcaster = broadcaster
        self._got = Kept(codec.encode_answer)
        self._listed = Kept(codec.encode_entry)
        self._seen = Kept(codec.encode_seen)
        self._told = Kept(codec.encode_notice)

    async def GetCapabilities(
        self, request: pb.GetCapabilitiesRequest, context: Any
    ) -> pb.GetCapabilitiesResponse:
        """Who we are. A gateway of the 0.1 generation is refused: it would
        misunderstand the rest.
        """
        if request.HasField("gateway"):
            raise Refused(
                "this driver speaks the 0.0 contract of OpenShell gateways "
                f"{SUPPORTED_GATEWAYS}; this gateway is of the "
                "0.1 generation, whose contract differs in more than its capabilities",
                reason="GatewayUnsupported",
                resolution=(
                    "use a gateway of that range, or a driver release that supports 0.1"
                ),
            )
        own = self._identity
        return pb.GetCapabilitiesResponse(
            driver_name=own.name,
            driver_version=own.version,
            default_image=own.default_image,
            gateway_manages_lifecycle=own.gateway_manages_lifecycle,
        )

    async def GetGatewayListenerRequirements(
        self, request: pb.GetGatewayListenerRequirementsRequest, context: Any
    ) -> pb.GetGatewayListenerRequirementsResponse:
        """None: sandboxes reach a gateway on the host's loopback through their tap."""
        return pb.GetGatewayListenerRequirementsResponse()

    async def ValidateSandboxCreate(
        self, request: pb.ValidateSandboxCreateRequest, context: Any
    ) -> pb.ValidateSandboxCreateResponse:
        """Check, do nothing."""
        spec, _ = codec.decode_sandbox(request, self._identity.default_image)
        manager = await self._readiness.manager()
        await manager.validate(spec, trace_of(context))
        return pb.ValidateSandboxCreateResponse()

    async def CreateSandbox(
        self, request: pb.CreateSandboxRequest, context: Any
    ) -> pb.CreateSandboxResponse:
        """Accept durably."""
        spec, token = codec.decode_sandbox(request, self._identity.default_image)
        manager = await self._readiness.manager()
        await manager.create(spec, token, trace_of(context))
        return pb.CreateSandboxResponse()

    async def GetSandbox(self, request: pb.GetSandboxRequest, context: Any) -> bytes:
        """By id, or else by name."""
        manager = await self._readiness.manager()
        found = manager.snapshot(request.sandbox_id, request.sandbox_name)
        return self._got.of(found)

    async def ListSandboxes(
        self, request: pb.ListSandboxesRequest, context: Any
    ) -> bytes:
        """All, sorted by name."""
        manager = await self._readiness.manager()
        return b"".join(map(self._listed.of, manager.statuses()))

    async def StopSandbox(
        self, request: pb.StopSandboxRequest, context: Any
    ) -> pb.StopSandboxResponse:
        """Returns when the machine is down."""
        await (await self._readiness.manager()).stop(
            request.sandbox_id, request.sandbox_name, trace_of(context)
        )
        return pb.StopSandboxResponse()

    async def StartSandbox(
        self, request: pb.StartSandboxRequest, context: Any
    ) -> pb.StartSandboxResponse:
        """Returns when the start is durably accepted."""
        await (await self._readiness.manager()).start(
            request.sandbox_id, request.sandbox_name
        )
        return pb.StartSandboxResponse()

    async def DeleteSandbox(
        self, request: pb.DeleteSandboxRequest, context: Any
    ) -> pb.DeleteSandboxResponse:
        """False for what is not known."""
        deleted = await (await self._readiness.manager()).delete(
            request.sandbox_id, request.sandbox_name, trace_of(context)
        )
        return pb.DeleteSandboxResponse(deleted=deleted)

    async def WatchSandboxes(
        self, request: pb.WatchSandboxesRequest, context: Any
    ) -> AsyncIterator[bytes]:
        """First everything, then every change. ABORTED for a watcher that fell behind:
        it reconnects.
        """
        await self._readiness.manager()
        subscription = self._broadcaster.subscribe()
        try:
            while (notice := await subscription.next()) is not None:
                yield self._encoded(notice)
        finally:
            self._broadcaster.unsubscribe(subscription)
        if subscription.fell_behind:
            await context.abort(
                grpc.StatusCode.ABORTED,
                "this watcher fell behind; watch again for the full list",
            )

    def _encoded(self, notice: Notice) -> bytes:
        # Each watcher's list is of notices of its own, about the same statuses.
        if isinstance(notice, Changed):
            return self._seen.of(notice.status)
        return self._told.of(notice)

    async def EnsureWorkspace(
        self, request: pb.EnsureWorkspaceRequest, context: Any
    ) -> pb.EnsureWorkspaceResponse:
        """Workspaces have nothing of their own here."""
        if not request.workspace:
            raise InvalidRequest("workspace", "is empty")
        return pb.EnsureWorkspaceResponse()

    async def DeleteWorkspace(
        self, request: pb.DeleteWorkspaceRequest, context: Any
    ) -> pb.DeleteWorkspaceResponse:
        """As above; the gateway has deleted the sandboxes before."""
        if not request.workspace:
            raise InvalidRequest("workspace", "is empty")
        return pb.DeleteWorkspaceResponse()
