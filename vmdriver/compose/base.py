"""The driver behind: calls as bytes, its outages, its answers as they are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from vmdriver.compose.dialect import PLAIN, Dialect
from vmdriver.errors import ConfigError, Unavailable

SERVICE = "/openshell.compute.v1.ComputeDriver/"
_log = logging.getLogger(__name__)
_MOST_METHODS = 64
_MAX_MESSAGE = 64 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
Metadata = Sequence[tuple[str, str | bytes]]


class BaseRejected(Exception):
    """The base driver refused, in its own words: passed on as they are."""

    def __init__(self, code: grpc.StatusCode, text: str, trailing: Metadata) -> None:
        super().__init__(f"{code.name}: {text}")
        self.code, self.text, self.trailing = code, text, trailing


@dataclass(frozen=True)
class Asked:
    """What of an incoming call goes on to the base: its metadata and its deadline."""

    metadata: Metadata = ()
    timeout_s: float | None = None

    @property
    def trace(self) -> dict[str, str]:
        """Its W3C trace context, if it has one."""
        names = {"traceparent", "tracestate"}
        return {k: str(v) for k, v in self.metadata if k in names}


class Base:
    """One base driver on a Unix socket. Opened at the first call, and again when it was lost.
    Whoever asks it hears the contract's words, whatever its own `dialect` is.
    """

    def __init__(self, address: str, wait_s: float, dialect: Dialect = PLAIN) -> None:
        if not address.startswith("unix:"):
            raise ConfigError(
                f"base: {address!r} is not an address",
                resolution="write unix:/path/of/the/driver's/socket",
            )
        self.address = address
        self._wait_s = wait_s
        self._dialect = dialect
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._calls: dict[str, Any] = {}

    async def close(self) -> None:
        """End every call."""
        await self._channel.close(0)

    async def call(
        self, method: str, request: bytes, asked: Asked, *, repeat: bool = True
    ) -> bytes:
        """One unary call by its name. BaseRejected; Unavailable when the base is not there for
        `wait_s`. `repeat`: it may be sent again when the connection broke, as all but
        creates may.
        """
        full = method if method.startswith("/") else SERVICE + method
        request = self._dialect.asked(method, request)
        multi = self._calls.get(full)
        if multi is None:
            multi = self._channel.unary_unary(full, None, None)
            if len(self._calls) < _MOST_METHODS:
                self._calls[full] = multi
        for last in (not repeat, True):
            await self._connected(asked)
            try:
                answer = await multi(
                    request, metadata=tuple(asked.metadata), timeout=asked.timeout_s
                )
                return self._dialect.answered(method, bytes(answer))
            except grpc.aio.AioRpcError as error:
                if _is_outage(error) and not last:
                    continue
                raise _translated(error, self.address) from error
        raise AssertionError  # the second round returns or raises

    async def watch(self) -> AsyncIterator[bytes]:
        """The base's events. Ends with BaseRejected or Unavailable, or when it ends them."""
        stream: Any = self._channel.unary_stream(f"{SERVICE}WatchSandboxes", None, None)
        call = stream(b"", wait_for_ready=True)
        try:
            async for event in call:
                yield self._dialect.event(bytes(event))
        except grpc.aio.AioRpcError as error:
            raise _translated(error, self.address) from error
        finally:
            call.cancel()

    async def _connected(self, asked: Asked) -> None:
        if self._channel.get_state(True) is grpc.ChannelConnectivity.READY:
            return
        limit = min(self._wait_s, asked.timeout_s or self._wait_s)
        try:
            async with asyncio.timeout(limit):
                await self._channel.channel_ready()
        except TimeoutError as error:
            raise _away(self.address) from error


def _away(address: str) -> Unavailable:
    return Unavailable(
        f"the base driver on {address} is not reachable",
        reason="BaseUnavailable",
        resolution="start it; nothing was lost",
    )


def _is_outage(error: Any) -> bool:
    """The connection's end, or gRPC's in a driver that ends, not an answer: a driver's own
    UNAVAILABLE has trailing metadata of its own only rarely, so its text decides too.
    """
    texts = ("failed to connect", "Socket closed", "Connection reset", "Stream removed")
    return error.code() is grpc.StatusCode.UNAVAILABLE and any(
        text in str(error.details())
        for text in (*texts, "recvmsg", "sendmsg", "GOAWAY", "Cancelling all calls")
    )


def _translated(error: Any, address: str) -> Exception:
    if _is_outage(error):
        return _away(address)
    trailing = tuple((k, v) for k, v in error.trailing_metadata() or ())
    return BaseRejected(error.code(), str(error.details() or ""), trailing)
