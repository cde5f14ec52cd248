"""The driver's service for gateways on other hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vmdriver.service.server import Server, serve_far
from vmdriver.service.tls.address import Address
from vmdriver.service.tls.identity import Identity
from vmdriver.service.tls.listener import Listener


class Remote:
    """A TLS listener, and behind it a server of that one service on a socket of its own."""

    def __init__(self, listener: Listener, server: Server) -> None:
        self.listener, self._server = listener, server

    async def stop(self, grace_s: float) -> None:
        """Calls under way have that long."""
        await self._server.stop(grace_s)
        await self.listener.close()


async def serve_remote(
    address: Address,
    identity: Identity,
    clients: Sequence[str],
    path: Path,
    register: Callable[[Any], None],
) -> Remote:
    """Started. `path`: of the socket between the two, in a directory that is closed to others;
    `register` adds the service. ConfigError.
    """
    server = await serve_far(path, register)
    listener = Listener(address, identity, clients, path)
    try:
        listener.start()
    except BaseException:
        await server.stop(0)
        raise
    return Remote(listener, server)
