"""The composed driver's end: a socket of its own that leads to a driver on another host, whose
certificate is for the name that was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from vmdriver.errors import ConfigError
from vmdriver.host.visible import visible
from vmdriver.service.tls.address import Address
from vmdriver.service.tls.certificate import own_certificate
from vmdriver.service.tls.context import PROTOCOL
from vmdriver.service.tls.ends import End, Lost, keep_alive
from vmdriver.service.tls.identity import Identity
from vmdriver.service.tls.keys import Side

_log = logging.getLogger(__name__)
CONNECT_S = 10.0
_MOST = 16
_SETTLE_S = 0.2
"""asyncio of Python 3.11 loses a socket that is connected at the moment at which the race for it
(staggered_race) is cancelled: who is about to connect has that long.
"""
_NOT_A_WORD = (
    "it hangs up when it has seen our certificate, and its log says why: "
    "tls_clients there has to name us"
)


class Tunnel:
    """`name`: what the driver's certificate has to be for. `trouble`: why it could not be reached
    the last time.
    """

    def __init__(
        self, address: Address, identity: Identity, path: Path, name: str = ""
    ) -> None:
        self.address, self.identity, self.path = address, identity, path
        self.trouble = ""
        self._name = name or address.host
        self._server: asyncio.Server | None = None
        self._follows: asyncio.Task[None] | None = None
        self._ends: dict[End, End] = {}
        """The near one to the far one, which may be on its way."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on `path`, whose directory is closed to others. The driver need not be there."""
        self.path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._near, self.path)
        self.path.chmod(0o600)
        follow = self.identity.follow(self._ask_again)
        self._follows = loop.create_task(follow, name="TLS files")

    async def close(self) -> None:
        """Everything."""
        if self._server is not None:
            self._server.close()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_SETTLE_S)
        tasks = [*self._tasks, *([self._follows] if self._follows else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._ask_again()
        await asyncio.sleep(0)
        self.path.unlink(missing_ok=True)

    def _ask_again(self) -> None:
        for far in list(self._ends.values()):
            far.abort()

    def _near(self) -> End:
        return _Near(self._forget, self._begin)

    def _forget(self, near: End, _error: Exception | None) -> None:
        self._ends.pop(near, None)

    def _begin(self, near: End) -> None:
        if len(self._ends) >= _MOST:
            near.abort()
            return
        self._ends[near] = far = End(self._lost)
        task = asyncio.get_running_loop().create_task(self._lead(near, far))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _lead(self, near: End, far: End) -> None:
        try:
            await self._connect(far)
        except (OSError, ValueError) as error:  # ValueError: a name that can be none
            far.abort()
            near.abort()
            self._say(why(error))
            return
        except BaseException:
            far.abort()
            near.abort()
            raise
        far.join(near)
        near.join(far)

    async def _connect(self, far: End) -> None:
        host, port = self.address
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().create_connection(
                lambda: far,
                host,
                port,
                ssl=self.identity.context,
                server_hostname=self._name,
                ssl_handshake_timeout=CONNECT_S,
                ssl_shutdown_timeout=CONNECT_S,
                happy_eyeballs_delay=0.25,
            )
        connection: socket.socket = far.said("socket")
        keep_alive(connection)
        if far.said("ssl_object").selected_alpn_protocol() != PROTOCOL:
            raise OSError("it speaks TLS, but something else than gRPC in it")

    def _lost(self, far: End, error: Exception | None) -> None:
        """With TLS 1.3 we are told only now whether we were let in."""
        if far.received:
            self.trouble = ""
            how = why(error) if isinstance(error, OSError) else "it was closed"
            _log.info("the connection with %s has ended: %s", self.address, how)
        elif far in self._ends.values():  # else it was our caller who went
            self._say(why(error) if isinstance(error, OSError) else self._hung_up())

    def _hung_up(self) -> str:
        """asyncio's server sends no alert; whether ours holds we can say ourselves."""
        try:
            own_certificate(self.identity.keys, Side.CLIENT)
        except ConfigError as error:
            return error.text()
        return _NOT_A_WORD

    def _say(self, trouble: str) -> None:
        trouble = visible(trouble)
        if trouble != self.trouble:
            _log.warning("%s cannot be reached: %s", self.address, trouble)
        self.trouble = trouble


def why(error: OSError | ValueError) -> str:
    """For people: what asyncio and OpenSSL say, without their numbers and places."""
    if text := getattr(error, "verify_message", ""):
        return str(text)
    if not isinstance(error, OSError):
        return str(error)
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, TimeoutError) and error.errno is None:
        return f"no answer within {CONNECT_S:.0f} s"
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or "it hangs up"


class _Near(End):
    """Of a caller of ours, who is led on as soon as he is there."""

    def __init__(self, lost: Lost, begin: Callable[[End], None]) -> None:
        super().__init__(lost)
        self._begin = begin

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._begin(self)
