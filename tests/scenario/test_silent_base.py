"""A base whose connection is there, and that says nothing on it: a process that is stopped, or a host that means harm."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.authority import Authority
from vmdriver.compose.base import Asked, Base, Unanswered
from vmdriver.compose.creates import Creates
from vmdriver.compose.dialect import PLAIN
from vmdriver.compose.patience import FAR, NEAR, Limits, Patience
from vmdriver.errors import Unavailable
from vmdriver.service.tls.address import Address
from vmdriver.service.tls.identity import Identity
from vmdriver.service.tls.keys import Side
from vmdriver.service.tls.tunnel import Tunnel

SOON, WAIT_S = Limits(ping_after_s=0.6, ping_s=0.6), 1.0
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""An HTTP/2 server's first words."""


class Silent:
    """Takes every connection, says that it speaks HTTP/2, and nothing more."""

    def __init__(self) -> None:
        self.asked = 0
        """How often, on whatever connection."""
        self.open: set[asyncio.BaseTransport] = set()

    async def close(self, server: asyncio.Server) -> None:
        server.close()
        async with asyncio.timeout(10):
            while self.open:
                await asyncio.sleep(0.01)


class _End(asyncio.Protocol):
    """One connection's."""

    def __init__(self, silent: Silent) -> None:
        self._silent = silent

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._silent.open.add(transport)
        transport.write(SETTINGS)

    def data_received(self, data: bytes) -> None:
        self._silent.asked += data.count(b"ComputeDriver/")

    def connection_lost(self, exc: Exception | None) -> None:
        self._silent.open.discard(self._transport)


@contextlib.asynccontextmanager
async def near(directory: Path) -> AsyncIterator[tuple[Base, Silent]]:
    silent, path = Silent(), directory / "base.sock"
    loop = asyncio.get_running_loop()
    server = await loop.create_unix_server(lambda: _End(silent), path)
    base = Base(f"unix:{path}", WAIT_S, limits=SOON)
    try:
        yield base, silent
    finally:
        await base.close()
        await silent.close(server)


@contextlib.asynccontextmanager
async def far(directory: Path) -> AsyncIterator[tuple[Base, Silent]]:
    authority = Authority(directory / "ca")
    keys = authority.issue("host.test", Side.SERVER)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys.certificate, keys.key)
    context.set_alpn_protocols(["h2"])
    silent = Silent()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _End(silent), "127.0.0.1", 0, ssl=context)
    address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    identity = Identity(authority.issue("gateway.test", Side.CLIENT), Side.CLIENT)
    tunnel = Tunnel(address, identity, directory / "base.sock", "host.test")
    await tunnel.start()
    base = Base(f"tls:{address}", WAIT_S, PLAIN, tunnel, SOON)
    try:
        yield base, silent
    finally:
        await base.close()
        await tunnel.close()
        await silent.close(server)


@pytest.mark.parametrize("where", [near, far])
async def test_a_base_that_says_nothing_is_left_and_asked_no_more_than_once_again(
    where: Any, tmp_path: Path
) -> None:
    async with where(tmp_path) as (base, silent), asyncio.timeout(20):
        with pytest.raises(Unavailable) as caught:
            await base.call("StopSandbox", b"", Asked())
        assert caught.value.reason == "BaseUnavailable"
        assert 1 <= silent.asked <= 2


async def test_a_create_in_a_base_that_says_nothing_may_have_been_done(
    tmp_path: Path,
) -> None:
    async with far(tmp_path) as (base, silent), asyncio.timeout(20):
        with pytest.raises(Unanswered):
            await Creates(base).ask(Wanted(), b"", Asked())
        assert 1 <= silent.asked <= 2


@dataclass(frozen=True)
class Wanted:
    id: str = "s1"
    name: str = "name-s1"
    workspace: str = ""


# --- one that answers pings


class Slow(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every call after `after_s`; its deadlines are noted."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self.deadlines: list[float | None] = []

    def service(self, _details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _request: bytes, context: Any) -> bytes:
        self.deadlines.append(context.time_remaining())
        await asyncio.sleep(self._after_s)
        return b"done"


@contextlib.asynccontextmanager
async def slow(
    directory: Path, after_s: float, limits: Limits
) -> AsyncIterator[tuple[Base, Slow]]:
    handler, path = Slow(after_s), directory / "base.sock"
    often = [("grpc.http2.min_ping_interval_without_data_ms", 100)]
    server = grpc.aio.server(options=often)
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    base = Base(f"unix:{path}", WAIT_S, limits=limits)
    try:
        yield base, handler
    finally:
        await base.close()
        await server.stop(0)


async def test_a_call_that_takes_long_is_not_cut_while_its_base_answers_pings(
    tmp_path: Path,
) -> None:
    limits = Limits(ping_after_s=0.2, ping_s=0.5)
    async with slow(tmp_path, 2.5, limits) as (base, handler):
        assert await base.call("StopSandbox", b"", Asked()) == b"done"
        assert handler.deadlines == [None], "asked once, and told no deadline of ours"


async def test_a_call_ends_whatever_its_base_does(tmp_path: Path) -> None:
    limits = Limits(ping_after_s=5.0, ping_s=5.0, call_s=0.5)
    async with slow(tmp_path, 60.0, limits) as (base, handler), asyncio.timeout(20):
        with pytest.raises(Unanswered, match="has not answered within"):
            await base.call("StopSandbox", b"", Asked())
        assert len(handler.deadlines) == 1


# --- the reckoning


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rounds_begin_until_a_lost_base_was_waited_for_once() -> None:
    clock = Clock()
    patience = Patience(FAR, 20.0, None, clock)
    clock.now += 20.1  # silent
    patience.lost(100.0)
    assert not patience.is_over
    assert patience.connect_s() == 20.0
    clock.now += 20.1
    patience.lost(120.2)
    assert patience.is_over
    assert patience.connect_s() == 0.0


def test_a_connection_that_lasted_has_its_base_waited_for_anew() -> None:
    clock = Clock()
    patience = Patience(FAR, 20.0, None, clock)
    for _ in range(3):
        began = clock.now
        clock.now += 60.0
        patience.lost(began)
        assert patience.connect_s() == 20.0


def test_who_has_answered_is_not_lost() -> None:
    clock = Clock()
    patience = Patience(FAR, 20.0, None, clock)
    patience.lost(clock.now)
    patience.answered()
    clock.now += 30.0
    assert not patience.is_over


def test_every_round_is_within_the_callers_deadline() -> None:
    clock = Clock()
    patience = Patience(FAR, 20.0, 30.0, clock)
    clock.now += 25.0
    assert patience.due_s() == 5.0
    assert patience.connect_s() == 5.0


def test_a_near_base_is_pinged_no_more_often_than_any_server_allows() -> None:
    """Every five minutes, says gRPC's guide; it ends connections otherwise."""
    assert dict(NEAR.options())["grpc.keepalive_time_ms"] > 300_000
    assert "grpc.keepalive_permit_without_calls" not in dict(NEAR.options())
