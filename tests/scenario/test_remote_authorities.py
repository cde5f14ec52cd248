"""A driver on another host: authorities that change while gateways work, chains of them, clocks that differ, gateways beside each
other, and strangers who do not leave.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.authority import Authority, chained
from tests.fakes.composed import Watching, composed, holding, until
from tests.fakes.driver import FakeDriver
from tests.fakes.far_driver import far_driver
from tests.fakes.service import sandbox
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.app import Composition
from vmdriver.compose.config import ComposeConfig
from vmdriver.model.phase import Phase
from vmdriver.service.remote import Remote
from vmdriver.service.tls import identity, listener
from vmdriver.service.tls.keys import Keys, Side

SERVER, FIRST, SECOND = "host.test", "first.test", "second.test"
NAMES = [FIRST, SECOND]
LIST = pb.ListSandboxesRequest()


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "LOOK_S", 0.05)


@dataclass
class Gateway:
    """What one has, and the composed driver beside it."""

    stub: Any
    composition: Composition
    told: Watching
    events: list[Any]

    async def create(self, sandbox_id: str, name: str = "") -> None:
        wanted = sandbox(sandbox_id)
        wanted.name = name or wanted.name
        await self.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=wanted))

    async def listed(self) -> list[str]:
        return sorted(s.id for s in (await self.stub.ListSandboxes(LIST)).sandboxes)


@asynccontextmanager
async def gateway(
    folder: Path, remote: Remote, keys: Keys, **more: Any
) -> AsyncIterator[Gateway]:
    folder.mkdir()
    settings = ComposeConfig(
        base=f"tls:127.0.0.1:{remote.listener.address.port}",
        bind_socket=folder / "c" / "c.sock",
        state_dir=folder / "s",
        tls_ca=keys.ca,
        tls_certificate=keys.certificate,
        tls_key=keys.key,
        tls_crl=keys.crl,
        tls_server_name=SERVER,
        **{"base_wait_s": 5.0, "create_grace_s": 0.5, **more},
    )
    told, events = Watching(folder / "world"), list[Any]()
    async with composed(settings, [told]) as (stub, composition):
        watching = asyncio.create_task(_watch(stub, events))
        try:
            yield Gateway(stub, composition, told, events)
        finally:
            watching.cancel()
            await asyncio.wait({watching})


async def _watch(stub: Any, events: list[Any]) -> None:
    async for event in stub.WatchSandboxes(pb.WatchSandboxesRequest()):
        events.append(event)


def ends_of(one: Gateway, sandbox_id: str) -> int:
    """How often it was told that it is deleted."""
    return [event.deleted.sandbox_id for event in one.events].count(sandbox_id)


def trouble(one: Gateway) -> str:
    assert one.composition.tunnel is not None
    return one.composition.tunnel.trouble


async def refused(stub: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListSandboxes(LIST)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(caught.value.details())


# --- gateways beside each other


@dataclass
class Two:
    driver: FakeDriver
    first: Gateway
    second: Gateway


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    authority = Authority(tmp_path / "ca")
    server = authority.issue(SERVER, Side.SERVER)
    first, second = (authority.issue(name, Side.CLIENT) for name in NAMES)
    async with (
        far_driver(tmp_path / "far", server, NAMES) as (driver, remote),
        gateway(tmp_path / "1", remote, first) as one,
        gateway(tmp_path / "2", remote, second) as other,
    ):
        yield Two(driver, one, other)


async def test_what_one_gateway_deletes_is_over_for_the_others_extensions(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as found:
        one, other = found.first, found.second
        await one.create("s1")
        await until(lambda: one.told.told == ["ready"])
        assert await other.listed() == ["s1"], (
            "as two gateways on its host see each other's"
        )
        assert holding(tmp_path / "1" / "world") == {"first", "second", "run"}
        answer = await other.stub.DeleteSandbox(
            pb.DeleteSandboxRequest(sandbox_id="s1")
        )
        assert answer.deleted
        await until(lambda: not one.composition.registry.all())
        assert one.told.told == ["ready", "stop", "delete"]
        assert holding(tmp_path / "1" / "world") == set()
        await until(lambda: ends_of(one, "s1") and ends_of(other, "s1"))
        assert (ends_of(one, "s1"), ends_of(other, "s1")) == (1, 1)
        assert not (tmp_path / "2" / "world").exists(), "it was never asked"


async def test_sandboxes_of_one_name_are_each_their_own_gateways(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as found:
        one, other = found.first, found.second
        await one.create("s1", "work")
        await other.create("s2", "work")
        await until(lambda: one.told.told == other.told.told == ["ready"])
        named = {"sandbox_id": "s1", "sandbox_name": "work"}
        await one.stub.StopSandbox(pb.StopSandboxRequest(**named))
        assert found.driver.phase("s1") is Phase.STOPPED
        assert found.driver.phase("s2") is Phase.RUNNING
        assert (one.told.told, other.told.told) == (["ready", "stop"], ["ready"])
        for stub in (one.stub, other.stub):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.StopSandbox(pb.StopSandboxRequest(sandbox_name="work"))
        assert found.driver.phase("s2") is Phase.RUNNING, "it says whose none is"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await other.create("s1", "work")
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert found.driver.phase("s1") is Phase.STOPPED
        assert holding(tmp_path / "1" / "world") == {"first", "second"}
        assert other.composition.registry.get("s1") is None
        (kept,) = other.composition.registry.all()
        assert (kept.record.id, kept.record.up) == ("s2", True)


# --- authorities


def used(keys: Keys, folder: Path) -> Keys:
    """Copies, which can be replaced while they are in use."""
    folder.mkdir()
    assert keys.crl is not None
    made = Keys(*(folder / name for name in ("ca", "crt", "key", "crl")))
    for source, place in zip(
        (keys.ca, keys.certificate, keys.key, keys.crl), files(made), strict=True
    ):
        shutil.copy(source, place)
    return made


def files(keys: Keys) -> list[Path]:
    assert keys.crl is not None
    return [keys.ca, keys.certificate, keys.key, keys.crl]


def put(place: Path, *sources: Path) -> None:
    """All of them into its place, as docs/remote.md has it: by a rename."""
    part = place.with_suffix(".new")
    part.write_bytes(b"".join(source.read_bytes() for source in sources))
    part.chmod(0o600)
    part.rename(place)


async def test_an_authority_is_replaced_while_its_gateway_works(tmp_path: Path) -> None:
    """Step by step as the document says; nothing is lost, and in the end the old one opens nothing."""
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    server = used(old.issue(SERVER, Side.SERVER), tmp_path / "server")
    client = used(old.issue(FIRST, Side.CLIENT), tmp_path / "client")
    stranger = old.issue(SECOND, Side.CLIENT)
    asked = 0

    async def ask(one: Gateway) -> None:
        nonlocal asked
        while True:
            assert await one.listed() == ["s1"]
            asked += 1

    async def step(one: Gateway) -> None:
        """It is in force at both ends, and calls go on."""
        await asyncio.sleep(0.3)
        seen = asked
        await until(lambda: asked > seen + 3 or asking.done())
        assert not asking.done(), asking.exception()

    async with (
        far_driver(tmp_path / "far", server, NAMES) as (_, remote),
        gateway(tmp_path / "1", remote, client, base_wait_s=20.0) as one,
    ):
        await one.create("s1")
        asking = asyncio.create_task(ask(one))
        await step(one)
        for keys in (server, client):
            put(keys.ca, old.ca, new.ca)
            put(keys.crl or Path(), old.crl, new.crl)
            await step(one)
        for keys, name, side in (
            (server, SERVER, Side.SERVER),
            (client, FIRST, Side.CLIENT),
        ):
            own = new.issue(name, side)
            put(keys.certificate, own.certificate)
            put(keys.key, own.key)
            await step(one)
        for keys in (client, server):
            put(keys.ca, new.ca)
            put(keys.crl or Path(), new.crl)
            await step(one)
        asking.cancel()
        await asyncio.wait({asking})
        async with gateway(
            tmp_path / "2", remote, replace(stranger, ca=new.ca, crl=new.crl),
            base_wait_s=0.5,
        ) as late:  # fmt: skip
            await refused(late.stub)


async def test_who_has_an_authority_between_is_let_in_until_that_is_revoked(
    tmp_path: Path,
) -> None:
    root = Authority(tmp_path / "root")
    between = Authority(tmp_path / "between", root)
    server = used(chained(root, between, Side.SERVER, SERVER), tmp_path / "server")
    client = used(chained(root, between, Side.CLIENT, FIRST), tmp_path / "client")
    async with (
        far_driver(tmp_path / "far", server, NAMES) as (_, remote),
        gateway(tmp_path / "1", remote, client, base_wait_s=0.5) as one,
    ):
        assert await one.listed() == []
        root.revoke(replace(client, certificate=between.ca))
        for keys in (client, server):
            put(keys.crl or Path(), root.crl, between.crl)
        await until(lambda: remote.listener.connections == 0)
        assert "revoked" in await refused(one.stub)


# --- names and clocks


@contextmanager
def said(caplog: pytest.LogCaptureFixture, text: str) -> Iterator[None]:
    with caplog.at_level(logging.WARNING):
        yield
    assert text in caplog.text


async def test_a_common_name_is_nobodys_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "ca")
    server = authority.issue(SERVER, Side.SERVER)
    client = authority.issue(FIRST, Side.CLIENT, named=False)
    with said(caplog, "is for no name (subjectAltName), but has a common name: first"):
        async with (
            far_driver(tmp_path / "far", server, NAMES) as (_, remote),
            gateway(tmp_path / "1", remote, client, base_wait_s=0.5) as one,
        ):
            assert "is for no name" in await refused(one.stub), "our own end knows, too"
            assert remote.listener.connections == 0


async def test_a_driver_with_a_common_name_alone_is_not_the_one_asked_for(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path / "ca")
    server = authority.issue(SERVER, Side.SERVER, named=False)
    client = authority.issue(FIRST, Side.CLIENT)
    async with (
        far_driver(tmp_path / "far", server, NAMES) as (_, remote),
        gateway(tmp_path / "1", remote, client, base_wait_s=0.5) as one,
    ):
        assert "Hostname mismatch" in await refused(one.stub)


async def test_a_certificate_of_a_host_whose_clock_is_ahead_is_let_in_when_it_is_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path / "ca")
    server = authority.issue(SERVER, Side.SERVER)
    soon = datetime.now(UTC) + timedelta(seconds=4)
    begin = f"{soon:%Y%m%d%H%M%S}Z"
    client = authority.issue(FIRST, Side.CLIENT, begin=begin)
    with said(caplog, "not yet valid"):
        async with (
            far_driver(tmp_path / "far", server, NAMES) as (_, remote),
            gateway(tmp_path / "1", remote, client, base_wait_s=20.0) as one,
        ):
            waiting = asyncio.create_task(one.listed())
            await until(lambda: "not yet valid" in trouble(one))
            assert await waiting == []
            assert datetime.now(UTC) >= soon.replace(microsecond=0)


# --- strangers


async def test_who_is_turned_away_and_does_not_leave_keeps_few_descriptors(
    tmp_path: Path,
) -> None:
    """The authority's own, of another service: they show a certificate, and answer nothing more."""
    authority = Authority(tmp_path / "ca")
    server = authority.issue(SERVER, Side.SERVER)
    stranger = authority.issue("stranger.test", Side.CLIENT)
    asked = ssl.create_default_context(cafile=str(stranger.ca))
    asked.load_cert_chain(stranger.certificate, stranger.key)
    held: list[ssl.SSLSocket] = []

    def come(port: int) -> None:
        for _ in range(3 * listener.MOST_HANDSHAKES):
            plain = socket.create_connection(("127.0.0.1", port))
            held.append(asked.wrap_socket(plain, server_hostname=SERVER))

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    async with far_driver(tmp_path / "far", server, NAMES) as (_, remote):
        before = descriptors()
        await asyncio.to_thread(come, remote.listener.address.port)
        few = before + len(held) + listener.MOST_HANDSHAKES + 4
        await until(lambda: descriptors() <= few, 3)  # before they are given up
        for one in held:
            one.close()
