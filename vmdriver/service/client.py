"""The command line's side of the socket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.errors import DriverError, Unavailable

_DEADLINE_S = 10.0
_STOP_S = 300.0
"""Memory may be kept."""


def list_sandboxes(path: Path) -> list[dict[str, Any]]:
    """Every sandbox of the driver on that socket, with its condition. Unavailable."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = pb_grpc.ComputeDriverStub(channel)
        try:
            answer = stub.ListSandboxes(pb.ListSandboxesRequest(), timeout=_DEADLINE_S)
        except grpc.RpcError as error:
            raise no_answer(path, str(error.details())) from error
    return [row_of(sandbox) for sandbox in answer.sandboxes]


def refusal(path: Path, error: Any) -> DriverError:
    """A failed call's, with the driver's words; Unavailable where nobody answers."""
    text = str(error.details())
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return no_answer(path, text)
    return DriverError(text, reason=error.code().name)


def stop_sandbox(path: Path, sandbox_id: str) -> None:
    """Returns when it is stopped. Unavailable, DriverError with the driver's words."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = pb_grpc.ComputeDriverStub(channel)
        try:
            stub.StopSandbox(
                pb.StopSandboxRequest(sandbox_id=sandbox_id), timeout=_STOP_S
            )
        except grpc.RpcError as error:
            raise refusal(path, error) from error


def no_answer(path: Path, details: str) -> Unavailable:
    """What to say of a socket that cannot be spoken to; `details` are gRPC's."""
    way_out = "start it with: vmdriver serve"
    if "Permission denied" in details:
        way_out = "the socket is for the user that the driver runs as: ask as root"
    return Unavailable(
        f"no driver answers on {path}", detail=details, resolution=way_out
    )


def row_of(sandbox: pb.DriverSandbox) -> dict[str, Any]:
    """A sandbox as commands show it."""
    known = sandbox.status.conditions
    condition = known[0] if known else pb.DriverCondition()
    return {
        "id": sandbox.id,
        "name": sandbox.name,
        "workspace": sandbox.workspace,
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "since": condition.last_transition_time,
    }
