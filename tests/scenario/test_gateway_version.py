"""What the gateway is asked for its version: over a real connection, with and without TLS."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import grpc
import pytest

from tests.fakes.health import gateway
from tests.fakes.registry import make_certificate
from vmdriver._proto import gateway_health_pb2 as pb
from vmdriver.errors import Unavailable
from vmdriver.lifecycle.ports.settings import TlsFiles
from vmdriver.service.gateway import GatewayService


def certified(folder: Path, name: str) -> tuple[grpc.ServerCredentials, TlsFiles]:
    """Of a gateway that has that name, and asks who calls."""
    make_certificate(folder, name)
    files = ("server.pem", "server.crt", "ca.crt")
    key, certificate, ca = (folder / file for file in files)
    own = [(key.read_bytes(), certificate.read_bytes())]
    credentials = grpc.ssl_server_credentials(own, ca.read_bytes(), True)
    return credentials, TlsFiles(ca, certificate, key)


async def test_a_gateway_says_its_version() -> None:
    async with gateway("0.0.111") as port:
        asked = GatewayService(f"http://127.0.0.1:{port}", None)
        assert await asked.version() == "0.0.111"
        assert await asked.version() == "0.0.111", "as often as it is asked"


async def test_a_gateway_with_tls_is_shown_the_guests_certificate(
    tmp_path: Path,
) -> None:
    credentials, bundle = certified(tmp_path, "IP:127.0.0.1")
    async with gateway("0.0.112", credentials) as port:
        endpoint = f"https://127.0.0.1:{port}"
        assert await GatewayService(endpoint, bundle).version() == "0.0.112"
        with pytest.raises(Unavailable):
            await GatewayService(endpoint, None).version()


async def test_a_gateway_that_says_its_name_for_guests_is_this_hosts(
    tmp_path: Path,
) -> None:
    """As one does that launches the driver: its grpc_endpoint is what guests dial."""
    credentials, bundle = certified(tmp_path, "DNS:host.openshell.internal")
    async with gateway("0.0.111", credentials) as port:
        endpoint = f"https://host.openshell.internal:{port}"
        assert await GatewayService(endpoint, bundle).version() == "0.0.111"
        with pytest.raises(Unavailable):  # it is not that name's certificate
            await GatewayService(f"https://127.0.0.1:{port}", bundle).version()
    async with gateway("0.0.112") as port:
        endpoint = f"http://host.openshell.internal:{port}"
        assert await GatewayService(endpoint, None).version() == "0.0.112"


async def test_a_gateway_that_is_away_or_says_nothing_is_told_as_such() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(Unavailable, match="does not say its version") as caught:
            await GatewayService(endpoint, None).version()
    assert "supervisor_path" in caught.value.resolution
    async with gateway("") as port:
        with pytest.raises(Unavailable, match="no version of its own"):
            await GatewayService(f"http://127.0.0.1:{port}", None).version()


async def test_what_is_no_gateway_is_told_as_such() -> None:
    async def chatter(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        writer.close()

    server = await asyncio.start_server(chatter, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Unavailable):
        await GatewayService(f"http://127.0.0.1:{port}", None).version()
    server.close()
    await server.wait_closed()


def test_our_message_is_read_by_upstreams_field_number() -> None:
    assert pb.GatewayHealthResponse.FromString(b"\x08\x01\x12\x03abc").version == "abc"
