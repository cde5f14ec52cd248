"""A driver on another host, behind a composed one: what passes, who is refused, and a link that breaks in the middle of
everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fakes.authority import Authority
from tests.fakes.composed import World as Holding
from tests.fakes.composed import composed, holding, until
from tests.fakes.driver import FakeDriver
from tests.fakes.far_driver import far_driver
from tests.fakes.link import Link
from tests.fakes.service import sandbox
from vmdriver._proto import admin_pb2, admin_pb2_grpc
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.cli.doctor.base_findings import base_findings
from vmdriver.cli.doctor.finding import Finding
from vmdriver.compose.app import Composition
from vmdriver.compose.config import ComposeConfig
from vmdriver.extension import Extension
from vmdriver.model.phase import Phase
from vmdriver.service.remote import Remote
from vmdriver.service.tls import listener
from vmdriver.service.tls.address import Address
from vmdriver.service.tls.keys import Keys, Side

SERVER, CLIENT = "host.test", "gateway.test"
ID = {"sandbox_id": "s1", "sandbox_name": "name-s1"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ca")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Keys:
    return authority.issue(SERVER, Side.SERVER)


@pytest.fixture(scope="module")
def client(authority: Authority) -> Keys:
    return authority.issue(CLIENT, Side.CLIENT)


@dataclass
class Far:
    """What a gateway has, and all that is behind it."""

    stub: Any
    driver: FakeDriver
    remote: Remote
    link: Link
    composition: Composition


def settings(tmp_path: Path, port: int, keys: Keys, **more: Any) -> ComposeConfig:
    values = {
        "base": f"tls:127.0.0.1:{port}",
        "bind_socket": tmp_path / "c" / "c.sock",
        "state_dir": tmp_path / "s",
        "tls_ca": keys.ca,
        "tls_certificate": keys.certificate,
        "tls_key": keys.key,
        "tls_crl": keys.crl,
        "tls_server_name": SERVER,
        "base_wait_s": 5.0,
    }
    return ComposeConfig(**{**values, **more})


@contextlib.asynccontextmanager
async def far(
    tmp_path: Path,
    server: Keys,
    client: Keys,
    extensions: tuple[Extension, ...] = (),
    delay_s: float = 0.0,
    **more: Any,
) -> AsyncIterator[Far]:
    async with (
        far_driver(tmp_path / "far", server) as (driver, remote),
        Link(remote.listener.address.port, delay_s) as link,
        composed(settings(tmp_path, link.port, client, **more), extensions) as (
            stub,
            composition,
        ),
    ):
        yield Far(stub, driver, remote, link, composition)


async def create(stub: Any, sandbox_id: str = "s1") -> None:
    await stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox(sandbox_id)))


async def watch(stub: Any, found: list[Any]) -> None:
    async for event in stub.WatchSandboxes(pb.WatchSandboxesRequest()):
        found.append(event)


async def refusal(stub: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListSandboxes(pb.ListSandboxesRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(caught.value.details())


async def test_a_whole_life_on_another_host_50_ms_away(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    events: list[Any] = []
    async with far(tmp_path, server, client, delay_s=0.05) as found:
        stub, driver = found.stub, found.driver
        answer = await stub.GetCapabilities(pb.GetCapabilitiesRequest())
        assert answer.driver_name == "vmdriver+vmdriver"
        watching = asyncio.create_task(watch(stub, events))
        await create(stub)
        await driver.in_phase("s1", Phase.RUNNING)
        await until(lambda: any(ready(event) for event in events))
        await stub.StopSandbox(pb.StopSandboxRequest(**ID))
        assert driver.phase() is Phase.STOPPED
        await stub.StartSandbox(pb.StartSandboxRequest(**ID))
        assert [s.id for s in (await listed(stub))] == ["s1"]
        answer = await stub.DeleteSandbox(pb.DeleteSandboxRequest(**ID))
        assert answer.deleted
        await until(lambda: events and events[-1].deleted.sandbox_id == "s1")
        watching.cancel()
        await asyncio.wait({watching})
        assert found.link.connections == 1


def ready(event: Any) -> bool:
    conditions = event.sandbox.sandbox.status.conditions
    return any(c.type == "Ready" and c.status == "True" for c in conditions)


async def listed(stub: Any) -> list[Any]:
    return list((await stub.ListSandboxes(pb.ListSandboxesRequest())).sandboxes)


async def test_nothing_but_the_one_service_is_served_to_other_hosts(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    """Asked by gRPC's own TLS, as any program of the client's could."""
    async with far_driver(tmp_path, server) as (_, remote):
        read = [p.read_bytes() for p in (client.ca, client.key, client.certificate)]
        credentials = grpc.ssl_channel_credentials(*read)
        options = [("grpc.ssl_target_name_override", SERVER)]
        target = f"127.0.0.1:{remote.listener.address.port}"
        async with grpc.aio.secure_channel(target, credentials, options) as channel:
            ours: Any = pb_grpc.ComputeDriverStub(channel)
            assert await listed(ours) == []
            admin: Any = admin_pb2_grpc.AdminStub(channel)
            for call in (
                admin.ListTemplates(admin_pb2.ListTemplatesRequest()),
                admin.GetExtensionCapabilities(
                    admin_pb2.GetExtensionCapabilitiesRequest()
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await reflection.ServerReflectionInfo(iter([request])).read()
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_every_address_is_that_of_both_kinds(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    everywhere = far_driver(tmp_path / "far", server, address=Address("::", 0))
    async with everywhere as (_, remote):
        port = remote.listener.address.port
        for number, host in enumerate(("127.0.0.1", "[::1]")):
            folder = tmp_path / str(number)
            folder.mkdir()
            base = f"tls:{host}:{port}"
            async with composed(settings(folder, port, client, base=base)) as (stub, _):
                assert await listed(stub) == []


# --- who is refused

LONG_AGO = {"begin": "20200101000000Z", "end": "20210101000000Z"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("expired", "expired"),
        ("foreign", "local issuer"),
        ("revoked", "revoked"),
        ("of a server", "purpose"),
        ("of another name", "hangs up"),
    ],
)
async def test_a_client_that_is_not_the_gateways_reaches_nothing(
    tmp_path: Path, authority: Authority, server: Keys, kind: str, said: str
) -> None:
    match kind:
        case "expired":
            bad = authority.issue(CLIENT, Side.CLIENT, "expired", **LONG_AGO)
        case "foreign":
            other = Authority(tmp_path / "other").issue(CLIENT, Side.CLIENT)
            bad = replace(other, ca=authority.ca, crl=authority.crl)
        case "revoked":
            bad = authority.issue(CLIENT, Side.CLIENT, "revoked")
            authority.revoke(bad)
        case "of a server":
            bad = authority.issue(CLIENT, Side.SERVER, "server-cert")
        case _:
            bad = authority.issue("somebody.test", Side.CLIENT)
    async with far(tmp_path, server, bad, base_wait_s=0.4) as found:
        tunnel = found.composition.tunnel
        assert tunnel is not None
        await until(lambda: tunnel.trouble)
        assert said in tunnel.trouble.replace("_", " ").lower(), tunnel.trouble
        text = await refusal(found.stub)  # by then it has been tried again
        assert "not reachable" in text
        assert said in text.replace("_", " ").lower()
        assert found.remote.listener.connections == 0


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("expired", "expired"),
        ("foreign", "unable to get local issuer"),
        ("revoked", "revoked"),
        ("of a client", "purpose"),
        ("of another name", "Hostname mismatch"),
    ],
)
async def test_a_driver_that_is_not_the_operators_is_told_nothing(
    tmp_path: Path, authority: Authority, client: Keys, kind: str, said: str
) -> None:
    match kind:
        case "expired":
            bad = authority.issue(SERVER, Side.SERVER, "server-expired", **LONG_AGO)
        case "foreign":
            other = Authority(tmp_path / "other").issue(SERVER, Side.SERVER)
            bad = replace(other, ca=authority.ca, crl=authority.crl)
        case "revoked":
            bad = authority.issue(SERVER, Side.SERVER, "server-revoked")
            authority.revoke(bad)
        case "of a client":
            bad = authority.issue(SERVER, Side.CLIENT, "client-cert")
        case _:
            bad = authority.issue("elsewhere.test", Side.SERVER)
    async with far(tmp_path, bad, client, base_wait_s=0.4) as found:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await create(found.stub)
        assert said in str(caught.value.details()), caught.value.details()
        assert found.driver.sandboxes() == []


@pytest.mark.parametrize(
    ("version", "taken"),
    [(ssl.TLSVersion.TLSv1_1, False), (ssl.TLSVersion.TLSv1_2, True)],
)
async def test_old_tls_is_refused(
    tmp_path: Path,
    server: Keys,
    client: Keys,
    version: ssl.TLSVersion,
    taken: bool,
) -> None:
    async with far_driver(tmp_path, server) as (_, remote):
        asked = ssl.create_default_context(cafile=str(client.ca))
        asked.load_cert_chain(client.certificate, client.key)
        asked.set_alpn_protocols(["h2"])
        asked.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            asked.minimum_version = asked.maximum_version = version
        assert await answers(remote, asked) is taken


async def test_what_speaks_no_grpc_or_shows_nothing_is_refused(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    async with far_driver(tmp_path, server) as (_, remote):
        asked = ssl.create_default_context(cafile=str(client.ca))
        asked.set_alpn_protocols(["h2"])
        assert not await answers(remote, asked), "without a certificate"
        asked.load_cert_chain(client.certificate, client.key)
        assert await answers(remote, asked)
        asked.set_alpn_protocols(["http/1.1"])
        assert not await answers(remote, asked), "another protocol"


async def answers(remote: Remote, asked: ssl.SSLContext) -> bool:
    """Whether there is a gRPC server: it speaks first (its SETTINGS)."""
    port = remote.listener.address.port
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=asked, server_hostname=SERVER
        )
    except OSError:
        return False
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        async with asyncio.timeout(5):
            return bool(await reader.read(9))
    except OSError:
        return False
    finally:
        writer.transport.abort()


async def test_doctor_tries_the_way_beside_a_composed_driver_that_runs(
    tmp_path: Path, authority: Authority, server: Keys, client: Keys
) -> None:
    async def levels(of: ComposeConfig) -> dict[str, Finding]:
        return {found.check: found async for found in base_findings(of)}

    async with far(tmp_path, server, client) as found:
        own = settings(tmp_path, found.link.port, client)
        told = await levels(own)
        assert {one.level for one in told.values()} == {"ok"}
        assert own.base in told["base"].message
        await listed(found.stub)
        other = settings(
            tmp_path,
            found.link.port,
            authority.issue("stranger.test", Side.CLIENT),
            base_wait_s=0.4,
        )
        assert "hangs up" in (await levels(other))["base"].message
        near = f"unix:{own.bind_socket}"
        plain = ComposeConfig(base=near, bind_socket=tmp_path / "x.sock")
        assert {one.level for one in (await levels(plain)).values()} == {"ok"}


# --- certificates that change while it runs


async def test_a_new_certificate_is_taken_up_and_a_half_written_one_is_not(
    tmp_path: Path, authority: Authority, client: Keys
) -> None:
    first = authority.issue(SERVER, Side.SERVER, "first")
    second = authority.issue(SERVER, Side.SERVER, "second")
    used = copied(first, tmp_path / "used")
    async with far(tmp_path, used, client) as found:
        await listed(found.stub)
        before = await serial(found.remote, client)
        used.certificate.write_bytes(second.certificate.read_bytes()[:200])
        assert not found.remote.listener.identity.refresh()
        assert await serial(found.remote, client) == before
        for name in ("key", "certificate"):
            getattr(used, name).write_bytes(getattr(second, name).read_bytes())
        assert not found.remote.listener.identity.refresh(), "the same are trusted"
        assert await serial(found.remote, client) != before
        await listed(found.stub)
        assert found.link.connections == 1, "who is connected stays"


def copied(keys: Keys, folder: Path) -> Keys:
    folder.mkdir()
    for path in (keys.certificate, keys.key):
        shutil.copy(path, folder)
    return replace(
        keys,
        certificate=folder / keys.certificate.name,
        key=folder / keys.key.name,
    )


async def serial(remote: Remote, client: Keys) -> str:
    """Of the certificate that is shown now."""
    asked = ssl.create_default_context(cafile=str(client.ca))
    asked.load_cert_chain(client.certificate, client.key)
    port = remote.listener.address.port
    _, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=asked, server_hostname=SERVER
    )
    shown = writer.get_extra_info("peercert")
    writer.transport.abort()
    return str(shown["serialNumber"])


async def test_who_is_revoked_while_connected_is_out_and_others_are_back(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "own")
    server = authority.issue(SERVER, Side.SERVER)
    client = authority.issue(CLIENT, Side.CLIENT)
    async with far(tmp_path, server, client, base_wait_s=2.0) as found:
        await create(found.stub)
        other = authority.issue("other.test", Side.CLIENT)
        authority.revoke(other)
        await until(lambda: found.link.connections >= 2)  # asked anew, by itself
        await create(found.stub, "s2")
        authority.revoke(client)
        await until(lambda: found.remote.listener.connections == 0)
        assert "revoked" in await refusal(found.stub)
        assert sorted(found.driver.sandboxes()) == ["s1", "s2"]


async def test_a_connection_ends_with_the_certificate_that_it_was_let_in_by(
    tmp_path: Path, authority: Authority, server: Keys
) -> None:
    end = datetime.now(UTC) + timedelta(seconds=5)
    client = authority.issue(CLIENT, Side.CLIENT, "short", end=f"{end:%Y%m%d%H%M%S}Z")
    async with far(tmp_path, server, client, base_wait_s=0.4) as found:
        await listed(found.stub)
        await until(lambda: found.remote.listener.connections == 0)
        assert datetime.now(UTC) >= end.replace(microsecond=0)
        await until(lambda: "expired" in found.composition.tunnel.trouble)  # type: ignore[union-attr]


class Clock(datetime):
    """It is set forward by `ahead` while nobody waits for that long."""

    ahead = timedelta()

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime.now(tz) + cls.ahead


async def test_a_clock_that_is_set_forward_ends_connections_too(
    tmp_path: Path,
    authority: Authority,
    server: Keys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "datetime", Clock)
    monkeypatch.setattr(Clock, "ahead", timedelta())
    end = datetime.now(UTC) + timedelta(days=1)
    client = authority.issue(CLIENT, Side.CLIENT, "day", end=f"{end:%Y%m%d%H%M%S}Z")
    async with far_driver(tmp_path / "far", server) as (_, remote):
        port = remote.listener.address.port
        asked = ssl.create_default_context(cafile=str(client.ca))
        asked.load_cert_chain(client.certificate, client.key)
        asked.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=asked, server_hostname=SERVER
        )
        await until(lambda: remote.listener.connections == 1)
        Clock.ahead = timedelta(days=2)
        await until(lambda: remote.listener.connections == 0)
        writer.transport.abort()


async def test_a_name_that_none_can_have_is_said(tmp_path: Path, client: Keys) -> None:
    with_dots = settings(tmp_path, 1, client, base="tls:a..b:7443", base_wait_s=0.5)
    async with composed(with_dots) as (stub, _):
        assert "label" in await refusal(stub)


# --- a link that breaks

CALLS: dict[str, Callable[[Any], Any]] = {
    "create": lambda stub: create(stub),
    "stop": lambda stub: stub.StopSandbox(pb.StopSandboxRequest(**ID)),
    "start": lambda stub: stub.StartSandbox(pb.StartSandboxRequest(**ID)),
    "delete": lambda stub: stub.DeleteSandbox(pb.DeleteSandboxRequest(**ID)),
}


def done(driver: FakeDriver, call: str) -> bool:
    """As far as the driver is concerned."""
    if call == "create":
        return driver.knows()
    if call == "delete":
        return not driver.knows()
    wanted = Phase.STOPPED if call == "stop" else Phase.RUNNING
    return driver.phase() is wanted


def settled(event: Any, call: str) -> bool:
    """That event says that the call can be made."""
    if call != "start":
        return ready(event)
    conditions = event.sandbox.sandbox.status.conditions
    return any(c.type == "Suspended" and c.status == "True" for c in conditions)


async def looked(found: Far) -> None:
    """The composed driver asks the base no question of its own any more."""
    composition = found.composition
    await listed(found.stub)
    sandboxes = composition.registry.all
    await until(lambda: not any(one.lock.locked() for one in sandboxes()))


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("call", CALLS)
async def test_an_answer_that_was_lost_is_asked_for_again(
    tmp_path: Path, server: Keys, client: Keys, call: str, extended: bool
) -> None:
    """The driver has done it, and the link is cut before it could say so."""
    extensions = (Holding(tmp_path / "world", 0),) if extended else ()
    events: list[Any] = []
    async with far(tmp_path, server, client, extensions) as found:
        driver, link = found.driver, found.link
        watching = asyncio.create_task(watch(found.stub, events))
        if call != "create":
            await create(found.stub)
            await driver.in_phase("s1", Phase.RUNNING)
        if call == "start":
            await found.stub.StopSandbox(pb.StopSandboxRequest(**ID))
        if call != "create":
            await until(lambda: any(settled(event, call) for event in events))
        await looked(found)
        link.hold_answers()
        asked = asyncio.ensure_future(CALLS[call](found.stub))
        await until(lambda: done(driver, call))
        assert not asked.done()
        link.cut()
        await asyncio.sleep(0.3)
        assert not asked.done(), "it is waited for"
        link.restore()
        await asked
        assert done(driver, call)
        assert driver.world.starts.get("s1", 0) <= 1 or call == "start"
        if call == "delete":
            assert driver.world.domains == {}
            await until(lambda: events and events[-1].deleted.sandbox_id == "s1")
            if extended:
                await until(lambda: holding(tmp_path / "world") == set())
        else:
            assert [s.id for s in await listed(found.stub)] == ["s1"]
            assert len(driver.world.domains) == (call != "stop")
            if extended:
                run = {"run"} if call != "stop" else set()
                assert holding(tmp_path / "world") == {"first", "second", *run}
        watching.cancel()
        await asyncio.wait({watching})


@pytest.mark.parametrize("call", CALLS)
async def test_a_call_while_the_link_is_cut_waits_for_it(
    tmp_path: Path, server: Keys, client: Keys, call: str
) -> None:
    async with far(tmp_path, server, client) as found:
        if call != "create":
            await create(found.stub)
            await found.driver.in_phase("s1", Phase.RUNNING)
        if call == "start":
            await found.stub.StopSandbox(pb.StopSandboxRequest(**ID))
        found.link.cut()
        asked = asyncio.ensure_future(CALLS[call](found.stub))
        await asyncio.sleep(0.3)
        assert not asked.done()
        found.link.restore()
        await asked
        await found.driver.settled()
        assert done(found.driver, call)


async def test_what_happened_while_the_link_was_cut_is_told_when_it_is_back(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    events: list[Any] = []
    async with far(tmp_path, server, client) as found:
        watching = asyncio.create_task(watch(found.stub, events))
        for name in ("s1", "s2"):
            await create(found.stub, name)
            await found.driver.in_phase(name, Phase.RUNNING)
        await until(lambda: sum(ready(event) for event in events) >= 2)
        found.link.cut()
        await found.driver.manager.delete("s1", "name-s1")
        await found.driver.manager.stop("s2", "name-s2")
        found.link.restore()
        await until(lambda: any(e.deleted.sandbox_id == "s1" for e in events))
        # Its end may be told once more behind that: by the list, and by its driver.
        await until(
            lambda: not ready([e for e in events if e.sandbox.sandbox.id == "s2"][-1])
        )
        assert not watching.done()
        watching.cancel()
        await asyncio.wait({watching})


async def test_a_create_that_was_withdrawn_is_not_asked_for_again(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    """The request itself was lost; a delete comes before the link is back."""
    async with far(tmp_path, server, client) as found:
        await listed(found.stub)
        found.link.hold_answers()
        asked = asyncio.ensure_future(create(found.stub))
        await until(lambda: found.driver.knows())
        found.link.cut()
        deleting = asyncio.ensure_future(
            found.stub.DeleteSandbox(pb.DeleteSandboxRequest(**ID))
        )
        await asyncio.sleep(0.1)
        found.link.restore()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await deleting
        await until(lambda: not found.driver.knows())
        assert await listed(found.stub) == []


async def test_another_sandbox_of_that_id_is_not_taken_for_the_one_asked_for(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    async with far(tmp_path, server, client) as found:
        await create(found.stub)
        found.link.hold_answers()
        other = pb.CreateSandboxRequest(sandbox=sandbox("s1", "another"))
        asked = asyncio.ensure_future(found.stub.CreateSandbox(other))
        await asyncio.sleep(0.2)
        found.link.cut()
        found.link.restore()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS


async def test_a_driver_that_is_restarted_is_as_one_on_this_host(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    async with far_driver(tmp_path / "far", server) as (driver, remote):
        address, world = remote.listener.address, driver.world
        link = Link(address.port)
        async with (
            link,
            composed(settings(tmp_path, link.port, client)) as (stub, _),
        ):
            await create(stub)
            await driver.settled()
            driver.broadcaster.close()
            await remote.stop(0.2)
            asked = asyncio.ensure_future(listed(stub))
            await asyncio.sleep(0.2)
            assert not asked.done()
            again = far_driver(tmp_path / "far", server, address=address, world=world)
            async with again as (second, _):
                assert [s.id for s in await asked] == ["s1"]
                await create(stub, "s2")
                assert sorted(second.sandboxes()) == ["s1", "s2"]


# --- those who mean harm


async def test_strangers_who_say_nothing_keep_nobody_out(
    tmp_path: Path, server: Keys, client: Keys
) -> None:
    """Twice as many as there are places; each sends the first byte of a handshake and waits."""
    async with far_driver(tmp_path / "far", server) as (_, remote):
        port = remote.listener.address.port
        strangers = []
        for _ in range(2 * listener.MOST_HANDSHAKES):
            stranger = await asyncio.open_connection("127.0.0.1", port)
            stranger[1].write(b"\x16")
            strangers.append(stranger)
        async with composed(settings(tmp_path, port, client)) as (stub, _):
            async with asyncio.timeout(listener.HANDSHAKE_S - 1):
                assert await listed(stub) == []
            async with asyncio.timeout(listener.HANDSHAKE_S + 3):
                for reader, _writer in strangers:
                    with contextlib.suppress(ConnectionError):
                        assert await reader.read() == b""
            assert await listed(stub) == []
        for _, writer in strangers:
            writer.transport.abort()


async def test_one_client_has_a_bound_and_takes_no_place_from_another(
    tmp_path: Path, authority: Authority, server: Keys, client: Keys
) -> None:
    other = authority.issue("second.test", Side.CLIENT)
    names = [CLIENT, "second.test"]
    async with far_driver(tmp_path / "far", server, names) as (_, remote):
        asked = ssl.create_default_context(cafile=str(client.ca))
        asked.load_cert_chain(client.certificate, client.key)
        asked.set_alpn_protocols(["h2"])
        port = remote.listener.address.port
        held = []
        for _ in range(3 * listener.MOST_OF_ONE):
            held.append(
                await asyncio.open_connection(
                    "127.0.0.1", port, ssl=asked, server_hostname=SERVER
                )
            )
        await until(lambda: remote.listener.connections == listener.MOST_OF_ONE)
        async with composed(settings(tmp_path, port, other)) as (stub, _):
            assert await listed(stub) == []
            assert remote.listener.connections == listener.MOST_OF_ONE + 1
            async with asyncio.timeout(5):
                for reader, _writer in held[: -listener.MOST_OF_ONE]:
                    with contextlib.suppress(ConnectionError):
                        await reader.read()  # its oldest have gone
        for _, writer in held:
            writer.transport.abort()
        await until(lambda: remote.listener.connections == 0)
