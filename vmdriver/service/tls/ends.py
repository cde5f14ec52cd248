"""Two ends of connections, and what is received at one passed on at the other."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

_LINGER_S = 5.0
"""For what is still to be sent when the other end has gone."""
_GIVEN_UP_MS = 20_000
"""Until a host that acknowledges nothing counts as gone (tcp(7): TCP_USER_TIMEOUT)."""
_EARLY = 256 * 1024


class End(asyncio.Protocol):
    """One connection. Nothing is read from it before it is joined with another; how fast it is read
    then is how fast that one takes it. `lost`: called once, with what broke it, if something did.
    """

    def __init__(self, lost: Lost) -> None:
        self.received = 0
        self._lost = lost
        self._transport: Any = None
        self._other: End | None = None
        self._early = bytearray()
        self._abort: asyncio.TimerHandle | None = None
        self._is_lost = False

    def join(self, other: End) -> None:
        """From now on what this one receives goes there. Call it on both."""
        self._other = other
        if self._early:
            other.write(bytes(self._early))
            self._early.clear()
        if self._is_lost:
            other.close()
        else:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """To whoever is at that end; what has gone takes nothing."""
        if not self._is_lost:
            self._transport.write(data)

    def close(self) -> None:
        """What was written is still sent, for a while."""
        if self._is_lost or self._abort is not None or self._transport is None:
            return
        loop = asyncio.get_running_loop()
        self._abort = loop.call_later(_LINGER_S, self._transport.abort)
        self._transport.close()

    def abort(self) -> None:
        """At once."""
        if not self._is_lost and self._transport is not None:
            self._transport.abort()

    def said(self, what: str) -> Any:
        """asyncio's extra information, such as "ssl_object"."""
        return self._transport.get_extra_info(what)

    # --- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands; with TLS, both have shown who they are."""
        self._transport = transport
        self._transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """What came with the end of a handshake is here before anybody is joined; nothing is taken
        from one that is being closed.
        """
        if self._abort is not None:
            return
        self.received += len(data)
        if self._other is not None:
            self._other.write(data)
            return
        self._early += data
        if len(self._early) > _EARLY:
            self.abort()

    def pause_writing(self) -> None:
        """It takes no more now."""
        if self._other is not None:
            self._other._pause(paused=True)  # noqa: SLF001 - the same class

    def resume_writing(self) -> None:
        """It does again."""
        if self._other is not None:
            self._other._pause(paused=False)  # noqa: SLF001 - the same class

    def _pause(self, *, paused: bool) -> None:
        if self._is_lost or self._transport.is_closing():
            return
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end goes, too."""
        self._is_lost = True
        if self._abort is not None:
            self._abort.cancel()
        if self._other is not None:
            self._other.close()
        self._lost(self, exc)


Lost = Callable[[End, Exception | None], None]
"""An end that is there no more, and what broke it."""


def keep_alive(connection: Any) -> None:
    """A host that has gone without a word is noticed within half a minute, whatever is sent."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GIVEN_UP_MS),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ):
        connection.setsockopt(level, option, value)
