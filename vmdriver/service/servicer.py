"""openshell.compute.v1.ComputeDriver: each method decodes, asks the manager, encodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.errors import InvalidRequest, Refused, Unavailable
from vmdriver.lifecycle.control.manager import Manager
from vmdriver.lifecycle.engine.broadcast import Broadcaster
from vmdriver.service import codec

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

    async def manager(self) -> Manager:
        """The manager, once it has recovered. Unavailable if that takes too long."""
        try:
            async with asyncio.timeout(_READY_WAIT_S):
                return await asyncio.shield(self._manager)
        except TimeoutError as error:
            raise Unavailable("the driver is still starting") from error


def trace_of(context: Any) -> dict[str, str]:
    """The W3C trace context of a call, if it has one."""
    metadata = context.invocation_metadata() or ()
    names = {"traceparent", "tracestate"}
    return {key: str(value) for key, value in metadata if key in names}


def register(service: ComputeDriver, server: Any) -> None:
    """Serve it."""
    pb_grpc.add_ComputeDriverServicer_to_server(service, server)


class ComputeDriver(pb_grpc.ComputeDriverServicer):
    """The service. Errors are raised; the interceptor turns them into status codes."""

    def __init__(
        self, identity: Identity, readiness: Readiness, broadcaster: Broadcaster
    ) -> None:
        self._identity = identity
        self._readiness = readiness
        self._broadcaster = broadcaster

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

    async def GetSandbox(
        self, request: pb.GetSandboxRequest, context: Any
    ) -> pb.GetSandboxResponse:
        """By id, or else by name."""
        manager = await self._readiness.manager()
        found = manager.snapshot(request.sandbox_id, request.sandbox_name)
        return pb.GetSandboxResponse(sandbox=codec.encode_status(found))

    async def ListSandboxes(
        self, request: pb.ListSandboxesRequest, context: Any
    ) -> pb.ListSandboxesResponse:
        """All, sorted by name."""
        manager = await self._readiness.manager()
        return pb.ListSandboxesResponse(
            sandboxes=[codec.encode_status(s) for s in manager.statuses()]
        )

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
    ) -> AsyncIterator[pb.WatchSandboxesEvent]:
        """First everything, then every change. ABORTED for a watcher that fell behind:
        it reconnects.
        """
        await self._readiness.manager()
        subscription = self._broadcaster.subscribe()
        try:
            while (notice := await subscription.next()) is not None:
                yield codec.encode_notice(notice)
        finally:
            self._broadcaster.unsubscribe(subscription)
        if subscription.fell_behind:
            await context.abort(
                grpc.StatusCode.ABORTED,
                "this watcher fell behind; watch again for the full list",
            )

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
