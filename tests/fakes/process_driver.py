"""A compute driver that is not ours, in another style: gRPC's threads, and each sandbox is a plain process. What it is told
and what it answers can be looked at and spoiled.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

FUTURE = "/openshell.compute.v1.ComputeDriver/"


class ProcessDriver(pb_grpc.ComputeDriverServicer):
    """`seen`: every request by method; `spoil`: called before each answer, may raise grpc errors through the context."""

    def __init__(self, socket: Path, name: str = "process") -> None:
        self.socket, self.name = socket, name
        self.sandboxes: dict[str, pb.DriverSandbox] = {}
        self.seen: list[tuple[str, Any]] = []
        self.metadata: list[tuple[str, dict[str, Any]]] = []
        self.spoil: Callable[[str, Any, Any], None] = lambda _m, _r, _c: None
        self.lingers = False
        """A stop or delete is only accepted when it is answered, as a cluster's is: `end_of` or `forget` ends it."""
        self.by_and_by = False
        """A start is only accepted when it is answered: what it says of the sandbox stays as it is."""
        self.workspaces: set[str] | None = None
        """Those it was asked for; None: it knows no workspaces."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchers: list[queue.Queue[pb.WatchSandboxesEvent | None]] = []
        self._server: Any = None

    def asked(self, method: str = "CreateSandbox") -> Any:
        """The last request of that method."""
        return [request for name, request in self.seen if name == method][-1]

    def metadata_of(self, method: str) -> dict[str, Any]:
        """The metadata of the last request of that method (the follower asks too)."""
        return [found for name, found in self.metadata if name == method][-1]

    # --- start and end

    def start(self) -> None:
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        self._server = grpc.server(ThreadPoolExecutor(40))
        pb_grpc.add_ComputeDriverServicer_to_server(self, self._server)
        self._server.add_generic_rpc_handlers((_Future(self),))
        self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        for watcher in self._watchers:
            watcher.put(None)
        self._watchers.clear()
        self._server.stop(0).wait()
        for thread in threading.enumerate():  # gRPC's own, which it does not join
            if "cancel_all_calls_after_grace" in thread.name:
                thread.join(5)

    def close(self) -> None:
        self.stop()
        for sandbox_id in list(self._processes):
            self._end(sandbox_id)

    def _end(self, sandbox_id: str) -> None:
        process = self._processes.pop(sandbox_id, None)
        if process is not None:
            process.kill()
            process.wait()

    # --- what it tells

    def tell(self, event: pb.WatchSandboxesEvent) -> None:
        for watcher in self._watchers:
            watcher.put(event)

    def condition(
        self, sandbox_id: str, kind: str, status: str, reason: str = ""
    ) -> None:
        sandbox = self.sandboxes[sandbox_id]
        del sandbox.status.conditions[:]
        sandbox.status.conditions.append(
            pb.DriverCondition(type=kind, status=status, reason=reason)
        )
        self.tell(
            pb.WatchSandboxesEvent(
                sandbox=pb.WatchSandboxesSandboxEvent(sandbox=sandbox)
            )
        )

    def forget(self, sandbox_id: str) -> None:
        """It vanishes without a word."""
        self._end(sandbox_id)
        self.sandboxes.pop(sandbox_id, None)

    def fail(self, method: str, code: grpc.StatusCode, why: str = "who knows") -> None:
        """It answers all calls of that method so, and does nothing, until `spoil` is another."""

        def spoil(called: str, _request: Any, context: Any) -> None:
            if called == method:
                context.abort(code, why)

        self.spoil = spoil

    def _begin(self, method: str, request: Any, context: Any) -> None:
        self.seen.append((method, request))
        self.metadata.append((method, dict(context.invocation_metadata())))
        self.spoil(method, request, context)

    def _one(self, request: Any, context: Any) -> pb.DriverSandbox:
        for sandbox in self.sandboxes.values():
            if request.sandbox_id in {"", sandbox.id} and (
                request.sandbox_id or request.sandbox_name == sandbox.name
            ):
                return sandbox
        context.abort(grpc.StatusCode.NOT_FOUND, "no such process sandbox")
        raise AssertionError

    # --- the contract

    def GetCapabilities(self, request: Any, context: Any) -> Any:
        self._begin("GetCapabilities", request, context)
        return pb.GetCapabilitiesResponse(
            driver_name=self.name, driver_version="7", default_image="none"
        )

    def ValidateSandboxCreate(self, request: Any, context: Any) -> Any:
        self._begin("ValidateSandboxCreate", request, context)
        return pb.ValidateSandboxCreateResponse()

    def CreateSandbox(self, request: Any, context: Any) -> Any:
        self._begin("CreateSandbox", request, context)
        asked = request.sandbox
        if asked.id in self.sandboxes:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "it is there already")
        self.sandboxes[asked.id] = pb.DriverSandbox(
            id=asked.id, name=asked.name, workspace=asked.workspace
        )
        self.run(asked.id)
        return pb.CreateSandboxResponse()

    def run(self, sandbox_id: str) -> None:
        """It is up from now on."""
        self._processes[sandbox_id] = subprocess.Popen(["/bin/sleep", "600"])
        self.condition(sandbox_id, "Ready", "True", "Running")

    def GetSandbox(self, request: Any, context: Any) -> Any:
        self._begin("GetSandbox", request, context)
        return pb.GetSandboxResponse(sandbox=self._one(request, context))

    def ListSandboxes(self, request: Any, context: Any) -> Any:
        self._begin("ListSandboxes", request, context)
        return pb.ListSandboxesResponse(sandboxes=self.sandboxes.values())

    def StartSandbox(self, request: Any, context: Any) -> Any:
        self._begin("StartSandbox", request, context)
        sandbox = self._one(request, context)
        if sandbox.id not in self._processes and not self.by_and_by:
            self.run(sandbox.id)
        return pb.StartSandboxResponse()

    def StopSandbox(self, request: Any, context: Any) -> Any:
        self._begin("StopSandbox", request, context)
        sandbox = self._one(request, context)
        if self.lingers:
            self.condition(sandbox.id, "Ready", "False", "Stopping")
        else:
            self._end(sandbox.id)
            self.condition(sandbox.id, "Suspended", "True", "Stopped")
        return pb.StopSandboxResponse()

    def end_of(self, sandbox_id: str) -> None:
        """Its process ends, and it says so in its own words."""
        self._end(sandbox_id)
        self.condition(sandbox_id, "Ready", "False", "Stopped")

    def DeleteSandbox(self, request: Any, context: Any) -> Any:
        self._begin("DeleteSandbox", request, context)
        if request.sandbox_id not in self.sandboxes:
            return pb.DeleteSandboxResponse(deleted=False)
        if self.lingers:
            self.condition(request.sandbox_id, "Ready", "False", "Terminating")
        else:
            self.gone(request.sandbox_id)
        return pb.DeleteSandboxResponse(deleted=True)

    def gone(self, sandbox_id: str) -> None:
        """It is deleted, and everybody who watches is told."""
        self.forget(sandbox_id)
        deleted = pb.WatchSandboxesDeletedEvent(sandbox_id=sandbox_id)
        self.tell(pb.WatchSandboxesEvent(deleted=deleted))

    def EnsureWorkspace(self, request: Any, context: Any) -> Any:
        self._begin("EnsureWorkspace", request, context)
        self._workspaces(context).add(request.workspace)
        return pb.EnsureWorkspaceResponse()

    def DeleteWorkspace(self, request: Any, context: Any) -> Any:
        self._begin("DeleteWorkspace", request, context)
        self._workspaces(context).discard(request.workspace)
        return pb.DeleteWorkspaceResponse()

    def _workspaces(self, context: Any) -> set[str]:
        if self.workspaces is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no workspaces here")
            raise AssertionError
        return self.workspaces

    def WatchSandboxes(
        self, request: Any, context: Any
    ) -> Iterator[pb.WatchSandboxesEvent]:
        self._begin("WatchSandboxes", request, context)
        mine: queue.Queue[pb.WatchSandboxesEvent | None] = queue.Queue()
        for sandbox in self.sandboxes.values():
            mine.put(
                pb.WatchSandboxesEvent(
                    sandbox=pb.WatchSandboxesSandboxEvent(sandbox=sandbox)
                )
            )
        self._watchers.append(mine)
        try:
            while context.is_active():
                with contextlib.suppress(queue.Empty):
                    event = mine.get(timeout=0.2)
                    if event is None:
                        return
                    yield event
        finally:
            with contextlib.suppress(ValueError):
                self._watchers.remove(mine)

    # GetGatewayListenerRequirements: UNIMPLEMENTED, as a small driver may


class _Future(grpc.GenericRpcHandler):
    """A call of a contract that is not written yet."""

    def __init__(self, driver: ProcessDriver) -> None:
        self._driver = driver

    def service(self, details: Any) -> Any:
        if details.method != f"{FUTURE}HibernateSandbox":
            return None

        def answer(raw: bytes, context: Any) -> bytes:
            self._driver.seen.append(("HibernateSandbox", raw))
            return b"back:" + raw

        return grpc.unary_unary_rpc_method_handler(answer)
