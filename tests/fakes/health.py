"""A gateway as far as it is asked for its version."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc


class Health(grpc.GenericRpcHandler):
    """Upstream's name of the call, and its field number of the version."""

    def __init__(self, version: str) -> None:
        self._version = version

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        if call.method != "/openshell.v1.OpenShell/Health":
            return None

        async def answer(_request: bytes, _context: Any) -> bytes:
            version = self._version.encode()
            return b"\x08\x01\x12" + bytes([len(version)]) + version

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def gateway(
    version: str, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> AsyncIterator[int]:
    """Its port; 0: any."""
    server = grpc.aio.server(handlers=[Health(version)])
    address = f"127.0.0.1:{port}"
    port = (
        server.add_insecure_port(address)
        if credentials is None
        else server.add_secure_port(address, credentials)
    )
    await server.start()
    yield port
    await server.stop(0)
