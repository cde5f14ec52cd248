"""The way from a host of machines back to a gateway elsewhere: what is said of it at the start and by doctor."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from tests.fakes.authority import Authority
from tests.fakes.composed import until
from tests.fakes.disk_driver import config
from tests.fakes.health import gateway
from tests.fakes.ports import free_port
from vmdriver.cli.doctor.finding import Finding
from vmdriver.cli.doctor.remote_findings import remote_findings
from vmdriver.config import Config
from vmdriver.service.tls.keys import Side
from vmdriver.service.way_back import WayBack


async def test_a_gateway_that_answers_is_the_way() -> None:
    async with gateway("0.0.111") as port:
        way = await WayBack(f"http://127.0.0.1:{port}", None).look()
        assert (way.open, way.gateway) == (True, True)
        assert "gateway 0.0.111" in way.text


async def test_what_listens_and_is_none_is_told_apart_from_nobody() -> None:
    async def chatter(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        writer.close()

    server = await asyncio.start_server(chatter, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    way = await WayBack(f"http://127.0.0.1:{port}", None).look()
    assert (way.open, way.gateway) == (True, False)
    server.close()
    await server.wait_closed()
    way = await WayBack(f"http://127.0.0.1:{port}", None).look()
    assert (way.open, way.gateway) == (False, False)
    assert "openshell_endpoint means this host" in way.advice
    way = await WayBack(f"http://192.0.2.1.invalid:{port}", None).look()
    assert not way.open
    assert "firewalls" in way.advice


async def test_a_gateway_that_comes_later_is_waited_for_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    with caplog.at_level(logging.INFO):
        telling = asyncio.create_task(WayBack(f"http://127.0.0.1:{port}", None).tell())
        await until(lambda: "nobody is reached" in caplog.text)
        assert not telling.done()
        async with gateway("0.0.112", port=port):
            await asyncio.wait_for(telling, 20)
    assert "gateway 0.0.112" in caplog.text
    assert caplog.text.count("nobody is reached") == 1


async def findings(settings: Config) -> dict[str, Finding]:
    return {one.check: one async for one in remote_findings(settings)}


async def test_doctor_asks_for_it_where_other_hosts_are_served(tmp_path: Path) -> None:
    keys = Authority(tmp_path / "ca").issue("host.test", Side.SERVER)
    async with gateway("0.0.111") as port:
        endpoint = f"http://127.0.0.1:{port}"
        assert await findings(config(tmp_path, openshell_endpoint=endpoint)) == {}
        settings = config(
            tmp_path,
            openshell_endpoint=endpoint,
            bind_tls="127.0.0.1:7443",
            tls_ca=keys.ca,
            tls_certificate=keys.certificate,
            tls_key=keys.key,
            tls_crl=keys.crl,
            tls_clients=["gateway.test"],
        )
        found = await findings(settings)
        assert {one.level for one in found.values()} == {"ok"}
        assert "gateway.test" in found["remote callers"].message
    found = await findings(settings)
    way = found["way to the gateway"]
    assert (way.level, way.blocks) == ("fail", False)
    assert way.advice
