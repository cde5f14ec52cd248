"""Whoever asks a guest is not alone: QEMU serves its channel to one at a time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from vmdriver.errors import GuestRefused, HypervisorError, TimedOut
from vmdriver.hypervisor import guest_channel
from vmdriver.model.record import REFUSED_TO


@asynccontextmanager
async def served(
    path: Path, *, silent: bool = False, before: bytes = b"", says: bytes = b"ok a=1"
) -> AsyncIterator[None]:
    """As libvirt has QEMU listen: one is served, two wait, everybody else is turned away. `before`:
    what the guest has still to say to somebody who has gone.
    """
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(1)
    listening.setblocking(False)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listening)
            with connection, suppress(OSError):  # it went while it was answered
                data = b""
                while part := await loop.sock_recv(connection, 4096):
                    data += part
                    if data.endswith(b"\n") and not silent:
                        number = data.rpartition(b"\xff")[2].split()[0]
                        await asyncio.sleep(0.005)
                        await loop.sock_sendall(
                            connection, before + number + b" " + says + b"\n"
                        )

    serving = asyncio.ensure_future(serve())
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        listening.close()


async def test_many_who_ask_at_once_are_all_answered(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        asked = [
            guest_channel.ask(str(tmp_path / "s"), "ping", dict, 20) for _ in range(20)
        ]
        assert await asyncio.gather(*asked) == [{"a": "1"}] * 20


async def test_whoever_finds_no_place_before_a_silent_guest_waits_no_longer_than_said(
    tmp_path: Path,
) -> None:
    async with served(tmp_path / "s", silent=True):
        asked = [
            guest_channel.ask(str(tmp_path / "s"), "ping", dict, 0.2) for _ in range(8)
        ]
        for found in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(found, TimedOut)


@pytest.mark.parametrize("torn", [False, True])
async def test_an_answer_to_somebody_who_has_gone_is_in_nobodys_way(
    tmp_path: Path, torn: bool
) -> None:
    """Of a command that floods; it may be the end of one, and a question asked twice has two."""
    answer = b"1.2.3 ok taken=0 out=" + b"A" * 10_900 + b" err=\n"
    stale = answer[500:] + answer if torn else answer * 3
    async with served(tmp_path / "s", before=stale):
        assert await guest_channel.ask(str(tmp_path / "s"), "ping", dict, 20) == {"a": "1"}  # fmt: skip


async def test_an_answer_that_is_longer_than_it_may_be_is_none(tmp_path: Path) -> None:
    async with served(tmp_path / "s", says=b"ok " + b"x" * 5000):
        with pytest.raises(HypervisorError):
            await guest_channel.ask(str(tmp_path / "s"), "ping", dict, 20)
        found = await guest_channel.ask_text(str(tmp_path / "s"), "io", dict, 20, longest=6000)  # fmt: skip
    assert found == "x" * 5000


async def test_a_refusal_has_the_guests_words_where_a_report_looks_for_them(
    tmp_path: Path,
) -> None:
    async with served(tmp_path / "s", says=b"error because"):
        with pytest.raises(GuestRefused, match=f"^{REFUSED_TO} freeze: because$"):
            await guest_channel.ask(str(tmp_path / "s"), "freeze", dict, 20)


@asynccontextmanager
async def answered(
    path: Path, *lines: bytes, endless: bool = False
) -> AsyncIterator[None]:
    """A guest that says these lines, with the request's number in them, once or without end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = (await reader.readline()).rpartition(b"\xff")[2].split()[0]
        with suppress(OSError):
            for line in lines:
                writer.write(line.replace(b"NUMBER", number) + b"\n")
            while endless:
                writer.write(b"noise\n" * 100)
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield
    finally:
        server.close()


async def test_an_answer_that_comes_late_is_none_to_what_is_asked_next(
    tmp_path: Path,
) -> None:
    late = b"9f.1.1 ok written=1", b"9f.1.1 error unknown verb"
    async with answered(tmp_path / "s", *late, b"NUMBER ok boot_id=b"):
        found = await guest_channel.ask(str(tmp_path / "s"), "freeze", dict, 20)
    assert found == {"boot_id": "b"}


async def test_a_guest_that_does_not_end_talking_is_not_listened_to(
    tmp_path: Path,
) -> None:
    async with answered(tmp_path / "s", endless=True):
        with pytest.raises(HypervisorError, match="cannot be asked to sync"):
            await guest_channel.ask(str(tmp_path / "s"), "sync", dict, 20)
