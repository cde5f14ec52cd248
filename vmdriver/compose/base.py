"""The driver behind: calls as bytes, its outages, its answers as they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from vmdriver.compose.dialect import PLAIN, Dialect
from vmdriver.compose.patience import FAR, NEAR, Limits, Patience
from vmdriver.errors import ConfigError, Unavailable
from vmdriver.service.tls.tunnel import Tunnel

SERVICE = "/openshell.compute.v1.ComputeDriver/"
_log = logging.getLogger(__name__)
_MOST_METHODS = 64
_MAX_MESSAGE = 64 * 1024 * 1024
_OPTIONS = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
_NEAR_OPTIONS = [("grpc.min_reconnect_backoff_ms", 100)]
_FAR_OPTIONS = [
    # Also how long one attempt may take: some round trips, and the handshake.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
_NEAR_AGAIN_S = (0.0,)
FAR_AGAIN_S = (0.1, 0.2, 0.4, 0.8)
"""Pauses before a call is sent again. A channel may not have noticed yet that its connection broke,
and a link that comes back may go again.
"""
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


class Unanswered(Unavailable):
    """It was asked, and has not answered: nobody knows what it has done."""

    reason = "BaseUnavailable"


class Base:
    """One base driver on a Unix socket, or behind a tunnel to another host. Opened at the first
    call, and again when it was lost. Whoever asks it hears the contract's words, whatever its own
    `dialect` is.
    """

    def __init__(
        self,
        address: str,
        wait_s: float,
        dialect: Dialect = PLAIN,
        tunnel: Tunnel | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`limits`: else those of a base on its side of the network."""
        if tunnel is None and not address.startswith("unix:"):
            raise ConfigError(
                f"base: {address!r} is not an address",
                resolution="write unix:/path/of/the/driver's/socket, or tls:HOST:PORT",
            )
        self.address = address
        self._tunnel = tunnel
        self._wait_s = wait_s
        self._dialect = dialect
        target = f"unix:{tunnel.path}" if tunnel is not None else address
        self._again_s = FAR_AGAIN_S if self.is_far else _NEAR_AGAIN_S
        self._limits = limits or (FAR if self.is_far else NEAR)
        options = [
            *_OPTIONS,
            *(_FAR_OPTIONS if self.is_far else _NEAR_OPTIONS),
            *self._limits.options(),
        ]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._calls: dict[str, Any] = {}

    @property
    def is_far(self) -> bool:
        """A lost connection does not mean that it has ended."""
        return self._tunnel is not None

    async def close(self) -> None:
        """End every call."""
        await self._channel.close(0)

    def patience(self, asked: Asked) -> Patience:
        """For one call that begins now, however often it is sent."""
        return Patience(self._limits, self._wait_s, asked.timeout_s)

    async def call(
        self,
        method: str,
        request: bytes,
        asked: Asked,
        *,
        repeat: bool = True,
        patience: Patience | None = None,
    ) -> bytes:
        """One unary call by its name. BaseRejected; Unavailable when the base is not there for
        `wait_s`, or says nothing for as long as the limits allow. `repeat`: it may be sent again
        when the connection broke, as all but creates may. `patience`: of what this is a part of.
        """
        full = method if method.startswith("/") else SERVICE + method
        request = self._dialect.asked(method, request)
        patience = patience or self.patience(asked)
        for pause_s in (*(self._again_s if repeat else ()), None):
            await self._connected(patience)
            sent_at = patience.now()
            try:
                answer = await self._sent(full, request, asked, patience)
                return self._dialect.answered(method, answer)
            except grpc.aio.AioRpcError as error:
                if not _is_outage(error):
                    patience.answered()
                    raise self._translated(error) from error
                patience.lost(sent_at)
                if pause_s is None or patience.is_over:
                    raise self._translated(error) from error
                await asyncio.sleep(pause_s)
        raise AssertionError  # the last round returns or raises

    async def _sent(
        self, full: str, request: bytes, asked: Asked, patience: Patience
    ) -> bytes:
        multi = self._calls.get(full)
        if multi is None:
            multi = self._channel.unary_unary(full, None, None)
            if len(self._calls) < _MOST_METHODS:
                self._calls[full] = multi
        metadata, due_s = tuple(asked.metadata), patience.due_s()
        try:
            # Not as a deadline: the base is told of its caller's alone.
            async with asyncio.timeout(patience.left_s()):
                answer = bytes(await multi(request, metadata=metadata, timeout=due_s))
        except TimeoutError as error:
            raise Unanswered(
                f"the base driver on {self.address} has not answered within "
                f"{self._limits.call_s:.0f} s",
                resolution="see what it does; it may have done what it was asked for",
            ) from error
        patience.answered()
        return answer

    async def watch(self) -> AsyncIterator[bytes]:
        """The base's events. Ends with BaseRejected or Unavailable, or when it ends them."""
        stream: Any = self._channel.unary_stream(f"{SERVICE}WatchSandboxes", None, None)
        call = stream(b"", wait_for_ready=True)
        try:
            async for event in call:
                yield self._dialect.event(bytes(event))
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        finally:
            call.cancel()

    async def _connected(self, patience: Patience) -> None:
        state = self._channel.get_state(True)
        if not patience.is_over:
            if state is grpc.ChannelConnectivity.READY:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience.connect_s()):
                    await self._channel.channel_ready()
                    return
        raise self._away(Unavailable)

    def _away(self, kind: type[Unavailable]) -> Unavailable:
        why = self._tunnel.trouble if self._tunnel is not None else ""
        return kind(
            f"the base driver on {self.address} is not reachable"
            + (f" ({why})" if why else ""),
            reason="BaseUnavailable",
            resolution="start it; nothing was lost"
            if self._tunnel is None
            else "start it, or mend the way to it; nothing was lost",
        )

    def _translated(self, error: Any) -> Exception:
        if _is_outage(error):
            return self._away(Unanswered)
        trailing = tuple((k, v) for k, v in error.trailing_metadata() or ())
        return BaseRejected(error.code(), str(error.details() or ""), trailing)


def _is_outage(error: Any) -> bool:
    """The connection's end, or gRPC's in a driver that ends, not an answer: a driver's own
    UNAVAILABLE has trailing metadata of its own only rarely, so its text decides too.
    """
    texts = [
        *("failed to connect", "Socket closed", "Connection reset", "Stream removed"),
        *("keepalive", "ping timeout", "Broken pipe"),
    ]
    return error.code() is grpc.StatusCode.UNAVAILABLE and any(
        text in str(error.details())
        for text in (*texts, "recvmsg", "sendmsg", "GOAWAY", "Cancelling all calls")
    )
