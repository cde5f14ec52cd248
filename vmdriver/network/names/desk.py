"""Where one machine asks for names: two sockets in its network namespace, and what is open there.

Everything is bounded: a guest that asks without end has its own questions dropped, and nobody
else's. What the kernel drops before is in its rules (network/rules/walled_rules.py).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from vmdriver.network.names import counts
from vmdriver.network.names.asking import Asking, framed, message_of
from vmdriver.network.names.query import LONGEST, question_of

PORT = 53
_IP_FREEBIND = 15
"""linux/in.h; Python 3.11 has no name for it. A tap that is moved in brings the address later."""
_OPEN, _OPEN_OF_ALL, _OPEN_ALWAYS = 64, 256, 8
"""Questions at a time: of one machine, of all together, and of one whatever others have."""
_STREAMS, _STREAMS_OF_ALL, _STREAMS_ALWAYS = 8, 64, 1
_EACH_S, _AT_ONCE = 64.0, 256.0
"""Questions of one machine; the kernel passes no more datagrams either."""
_IDLE_S, _TAKES_S = 10.0, 5.0
"""A stream without a question, and one whose guest does not take the answer."""
_BEHIND = 128
"""Streams that wait to be accepted; more are refused by the kernel."""


@dataclass
class Load:
    """Of all machines together."""

    open: int = 0
    streams: int = 0
    count: Callable[[str], None] = counts.asked
    """Called with what has become of one."""


@dataclass
class Pace:
    """How fast one machine may ask: so many at once, and again as time passes."""

    left: float = _AT_ONCE
    at: float | None = None

    def allows(self, now: float) -> bool:
        """One more at that moment, in seconds of any clock that only runs."""
        passed = 0.0 if self.at is None else now - self.at
        self.left, self.at = min(_AT_ONCE, self.left + passed * _EACH_S), now
        if self.left < 1:
            return False
        self.left -= 1
        return True


@dataclass(frozen=True)
class Sockets:
    """One for datagrams and one that listens for streams."""

    datagrams: socket.socket
    streams: socket.socket

    @classmethod
    def opened(cls, address: str) -> Sockets:
        """At that address of the network namespace that this thread is in, there already or not.
        OSError.
        """
        made: list[socket.socket] = []
        try:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                one = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
                made.append(one)
                one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
                if kind is socket.SOCK_STREAM:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((address, PORT))
            made[1].listen(_BEHIND)
        except BaseException:
            for one in made:
                one.close()
            raise
        return cls(*made)

    def close(self) -> None:
        """Where nobody has taken them."""
        self.datagrams.close()
        self.streams.close()


@dataclass(eq=False)
class Desk(asyncio.DatagramProtocol):
    """One machine's, until `close`."""

    asking: Asking
    load: Load
    _own: int = field(default=0, init=False)
    """Questions that are open."""
    _pace: Pace = field(default_factory=Pace, init=False)
    _transport: asyncio.DatagramTransport | None = field(default=None, init=False)
    _server: asyncio.Server | None = field(default=None, init=False)
    _questions: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _streams: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    async def open(self, sockets: Sockets) -> None:
        """Answer there from now on. They are closed with it. OSError."""
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, sock=sockets.datagrams)
        self._server = await asyncio.start_server(self._accept, sock=sockets.streams)

    async def close(self) -> None:
        """Nothing of it goes on after this."""
        if self._server is not None:
            self._server.close()
        if self._transport is not None:
            self._transport.abort()
        under_way = self._questions | self._streams
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)

    # --- datagrams

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def error_received(self, exc: Exception) -> None:
        """A guest that has gone away from its question."""

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if self._is_full():
            return
        self._begin(self._datagram(data, addr), self._questions)

    def _is_full(self) -> bool:
        full = self._own >= _OPEN or (
            self._own >= _OPEN_ALWAYS and self.load.open >= _OPEN_OF_ALL
        )
        full = full or not self._pace.allows(asyncio.get_running_loop().time())
        if full:
            self.load.count("dropped")
        return full

    def _begin(
        self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="names")
        among.add(task)
        task.add_done_callback(among.discard)
        return task

    async def _datagram(self, data: bytes, guest: Any) -> None:
        answer = await self._answer(data, stream=False)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, guest)

    async def _answer(self, data: bytes, *, stream: bool) -> bytes | None:
        """For the guest; None: to what it has sent there is none."""
        question, load = question_of(data), self.load
        if question is None:
            load.count("refused")
            return None
        load.open += 1
        self._own += 1
        try:
            ask = self.asking.stream if stream else self.asking.datagram
            found = await ask(question)
        finally:
            load.open -= 1
            self._own -= 1
        load.count("failed" if found is None else "answered")
        return question.failed() if found is None else found

    # --- streams

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._server is not None and not self._server.is_serving():
            writer.transport.abort()  # it came just before the end
            return
        own, of_all = len(self._streams), self.load.streams
        if own >= _STREAMS or (own >= _STREAMS_ALWAYS and of_all >= _STREAMS_OF_ALL):
            self.load.count("dropped")
            writer.transport.abort()
            return
        talk = self._begin(self._stream(reader, writer), self._streams)
        # Not at the talk's own end: one that is cancelled at once never begins.
        talk.add_done_callback(lambda _: writer.transport.abort())

    async def _stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One question after the other."""
        self.load.streams += 1
        try:
            with suppress(OSError, TimeoutError):
                await self._talk(reader, writer)
                async with asyncio.timeout(_TAKES_S):
                    writer.close()
                    await writer.wait_closed()
        finally:
            self.load.streams -= 1

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Until the guest has no more questions, or asks what nobody answers."""
        with suppress(EOFError):
            while True:
                async with asyncio.timeout(_IDLE_S):
                    data = await message_of(reader, LONGEST)
                if self._is_full():
                    return
                answer = await self._answer(data, stream=True)
                if answer is None:
                    return
                async with asyncio.timeout(_TAKES_S):
                    writer.write(framed(answer))
                    await writer.drain()
