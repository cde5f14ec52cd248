"""Asks the host's own name servers, one after the other, in datagrams and in streams."""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections.abc import Callable
from contextlib import suppress

from vmdriver.network.names.query import Question

PORT = 53
_PATIENCE_S = 2.0
"""With one server. A guest's own resolver waits five seconds."""
_LONGEST = 65535


class _Asked(asyncio.DatagramProtocol):
    """One question to one server. The socket is connected: what comes is the server's."""

    def __init__(self, question: Question, number: int) -> None:
        self._question, self._number = question, number
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        done = self.answer.done()
        if not done and self._question.is_answered_by(data, self._number):
            self.answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


class Asking:
    """`servers`: the host's of this moment, the first one first."""

    def __init__(
        self, servers: Callable[[], tuple[str, ...]], port: int = PORT
    ) -> None:
        self._servers, self._port = servers, port

    async def datagram(self, question: Question) -> bytes | None:
        """The answer, for the guest; None: no server has one."""
        for server in self._servers():
            with suppress(OSError, TimeoutError):
                return question.for_guest(await self._datagram(question, server))
        return None

    async def stream(self, question: Question) -> bytes | None:
        """The same, of any length."""
        for server in self._servers():
            with suppress(OSError, TimeoutError, EOFError):
                return question.for_guest(await self._stream(question, server))
        return None

    async def _datagram(self, question: Question, server: str) -> bytes:
        number = secrets.randbits(16)
        loop = asyncio.get_running_loop()
        transport, asked = await loop.create_datagram_endpoint(
            lambda: _Asked(question, number), remote_addr=(server, self._port)
        )
        try:
            async with asyncio.timeout(_PATIENCE_S):
                transport.sendto(question.message(number))
                return await asked.answer
        finally:
            transport.close()

    async def _stream(self, question: Question, server: str) -> bytes:
        number = secrets.randbits(16)
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_connection(
                server, self._port, limit=_LONGEST
            )
            try:
                writer.write(framed(question.message(number)))
                answer = await message_of(reader)
            finally:
                writer.transport.abort()
        if not question.is_answered_by(answer, number):
            raise OSError("that is no answer to what was asked")
        return answer


def framed(message: bytes) -> bytes:
    """As a stream has it: behind its length."""
    return struct.pack(">H", len(message)) + message


async def message_of(reader: asyncio.StreamReader, most: int = _LONGEST) -> bytes:
    """The next one of a stream. IncompleteReadError, an EOFError, where it ends before that, or is
    to become longer than `most` bytes.
    """
    (length,) = struct.unpack(">H", await reader.readexactly(2))
    if length > most:
        raise EOFError
    return await reader.readexactly(length)
