"""Streams cut in two, checkpoints that notice any change, and what stands in a restore's way."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_plan_rendering import plan
from vmdriver.errors import Exhausted, HypervisorError, NotFound, Refused, TimedOut
from vmdriver.host.threads import Threads
from vmdriver.hypervisor import guest_channel
from vmdriver.hypervisor.memory.ram_stream import MAIN_BLOCK, PAGE, Split, split
from vmdriver.lifecycle.launch.secrets import secrets_digest
from vmdriver.lifecycle.memory import restore_check
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.memory import Captured
from vmdriver.model.checkpoint import FileIdentity
from vmdriver.storage.checkpoints import Checkpoints

# --- the stream

RAM = 64 * PAGE


SWITCHOVER = b"\x08" + struct.pack(">HH", 12, 0)
"""A command of QEMU 10, between two sections."""


def stream(
    pages: dict[int, bytes],
    roms: dict[int, bytes],
    tail: bytes = b"\x04devices",
    between: bytes = b"",
) -> bytes:
    """What QEMU writes: RAM of 64 pages and a ROM of 8, in two sections, and the devices behind them."""

    def name(text: bytes) -> bytes:
        return bytes([len(text)]) + text

    def records(block: bytes, content: dict[int, bytes], count: int) -> bytes:
        out, first = b"", True
        for number in range(count):
            data = content.get(number, b"")
            flags = (0x08 if data else 0x02) | (0 if first else 0x20)
            out += struct.pack(">Q", number * PAGE | flags) + (
                name(block) if first else b""
            )
            out += data or b"\0"
            first = False
        return out

    header = struct.pack(">II", 0x5145564D, 3) + b"\x07" + struct.pack(">I", 3) + b"q35"
    start = b"\x01" + struct.pack(">I", 2) + name(b"ram") + struct.pack(">II", 0, 4)
    sizes = struct.pack(">Q", (RAM + 8 * PAGE) | 0x04)
    sizes += (
        name(b"pc.ram")
        + struct.pack(">Q", RAM)
        + name(b"pc.rom")
        + struct.pack(">Q", 8 * PAGE)
    )
    end = struct.pack(">Q", 0x10)
    footer = b"\x7e" + struct.pack(">I", 2)
    first = start + sizes + end + footer
    second = (
        b"\x03"
        + struct.pack(">I", 2)
        + records(b"pc.ram", pages, 64)
        + records(b"pc.rom", roms, 8)
        + end
        + footer
    )
    return header + first + between + second + tail


def cut(data: bytes, memory: Path, size: int = RAM) -> Split:
    source, target = os.pipe()

    def feed() -> None:
        with os.fdopen(target, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=feed, daemon=True)
    writer.start()
    descriptor = os.open(memory, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return split(source, descriptor, size)
    finally:
        os.close(descriptor)
        os.close(source)
        writer.join(5)


@given(
    st.dictionaries(st.integers(0, 63), st.integers(1, 255), max_size=64),
    st.dictionaries(st.integers(0, 7), st.integers(1, 255), max_size=8),
    st.sampled_from([b"", SWITCHOVER, b"\x08" + struct.pack(">HH", 5, 3) + b"abc"]),
)
def test_any_stream_is_cut_into_its_memory_and_the_rest(
    tmp_path_factory: pytest.TempPathFactory,
    pages: dict[int, int],
    roms: dict[int, int],
    between: bytes,
) -> None:
    memory = tmp_path_factory.mktemp("m") / "memory"
    content = {n: bytes([v]) * PAGE for n, v in pages.items()}
    rom = {n: bytes([v]) * PAGE for n, v in roms.items()}
    found = cut(stream(content, rom, between=between), memory)
    assert found.memory_bytes == RAM == memory.stat().st_size
    assert found.stored_bytes == len(pages) * PAGE
    data = memory.read_bytes()
    for number in range(64):
        assert data[number * PAGE : (number + 1) * PAGE] == content.get(
            number, b"\0" * PAGE
        )
    # The rest is a stream as well: cut again, it has the same devices and no page of the main block.
    again = cut(found.state, memory.with_name("again"))
    assert again.stored_bytes == 0
    assert again.state == found.state
    assert found.state.endswith(b"\x04devices")
    assert MAIN_BLOCK.encode() in found.state
    assert b"pc.ram" not in found.state
    assert between in found.state


def test_pages_behind_what_nobody_knows_are_an_error_and_not_left_out(
    tmp_path: Path,
) -> None:
    with pytest.raises(HypervisorError, match="no end of the memory"):
        cut(stream({1: b"x" * PAGE}, {}, between=b"\x2a"), tmp_path / "memory")


@pytest.mark.parametrize("size", [0, 4, 11, 60, 5000, -1])
def test_a_stream_that_breaks_off_is_an_error(tmp_path: Path, size: int) -> None:
    whole = stream({1: b"x" * PAGE}, {}, b"")
    if size < 0:
        whole = b"NOPE" + whole
        size = len(whole)
    with pytest.raises(HypervisorError):
        cut(whole[:size], tmp_path / "memory")


def test_a_stream_without_the_guests_memory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="size"):
        cut(stream({}, {}), tmp_path / "memory", size=RAM * 2)


# --- checkpoints on disk


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Checkpoints]:
    threads = Threads("test", 4)
    yield Checkpoints(threads, Ownership(os.getuid(), os.getgid()))
    threads.close()


async def a_checkpoint(store: Checkpoints, directory: Path) -> tuple[Any, ...]:
    memory = Path(await store.begin(str(directory), 1))
    with memory.open("r+b") as file:
        file.truncate(130 * 2**20)
        for at in (0, 70 * 2**20 + 5, 130 * 2**20 - 3):
            file.seek(at)
            file.write(b"abc")
    captured = Captured(b"state", "<domain/>", 3, "pc-q35-7.2", "<cpu/>")
    return await store.write_parts(str(directory), captured)


async def test_a_checkpoint_is_sparse_and_whole(
    store: Checkpoints, tmp_path: Path
) -> None:
    parts = await a_checkpoint(store, tmp_path / "i")
    assert [p.name for p in parts] == ["memory", "state", "domain.xml"]
    assert parts[0].stored < 2**20
    assert (tmp_path / "i" / "memory").stat().st_blocks * 512 < 2**20
    assert await store.damage(str(tmp_path / "i"), parts) == []


async def test_a_copy_with_its_holes_filled_is_the_same_checkpoint(
    store: Checkpoints, tmp_path: Path
) -> None:
    parts = await a_checkpoint(store, tmp_path / "i")
    memory = tmp_path / "i" / "memory"
    memory.write_bytes(memory.read_bytes())
    assert await store.damage(str(tmp_path / "i"), parts) == []


CHANGES: dict[str, Callable[[Path], object]] = {
    "a bit at the beginning": lambda d: poke(d / "memory", 1),
    "a bit in what was a hole": lambda d: poke(d / "memory", 40 * 2**20),
    "the last byte": lambda d: poke(d / "memory", 130 * 2**20 - 1),
    "cut": lambda d: os.truncate(d / "memory", 129 * 2**20),
    "grown": lambda d: os.truncate(d / "memory", 131 * 2**20),
    "the state": lambda d: poke(d / "state", 2),
    "the domain": lambda d: poke(d / "domain.xml", 2),
    "gone": lambda d: (d / "state").unlink(),
    "a link": lambda d: (
        (d / "state").rename(d / "s"),
        (d / "state").symlink_to(d / "s"),
    ),
}


def poke(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))


@pytest.mark.parametrize("change", CHANGES)
async def test_any_change_is_noticed(
    store: Checkpoints, tmp_path: Path, change: str
) -> None:
    parts = await a_checkpoint(store, tmp_path / "i")
    CHANGES[change](tmp_path / "i")
    assert len(await store.damage(str(tmp_path / "i"), parts)) == 1


async def test_space_is_reserved_before_a_checkpoint_is_begun(
    store: Checkpoints, tmp_path: Path
) -> None:
    with pytest.raises(Exhausted, match="MiB are free"):
        await store.begin(str(tmp_path / "i"), 2**60)
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    await store.begin(str(tmp_path / "a"), free * 2 // 3)
    with pytest.raises(Exhausted):
        await store.begin(str(tmp_path / "b"), free * 2 // 3)
    await store.end(str(tmp_path / "a"))
    await store.begin(str(tmp_path / "b"), free * 2 // 3)


async def test_a_checkpoint_without_a_manifest_does_not_exist(
    store: Checkpoints, tmp_path: Path
) -> None:
    await a_checkpoint(store, tmp_path / "i")
    with pytest.raises(NotFound):
        await store.read(str(tmp_path / "i"))
    (tmp_path / "i" / "manifest.json").write_text("{}")
    with pytest.raises(Refused):
        await store.read(str(tmp_path / "i"))


async def test_a_write_to_a_file_changes_its_identity(
    store: Checkpoints, tmp_path: Path
) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x")
    before = await store.identify((str(path),))
    assert await store.identify((str(path),)) == before
    poke(path, 0)
    assert await store.identify((str(path),)) != before


async def test_who_may_read_a_file_of_ours_is_no_part_of_its_identity(
    store: Checkpoints, tmp_path: Path
) -> None:
    """Machines are let in when they come to stand on it. Of one that a machine may write, it says that it was."""
    path = tmp_path / "disk"
    path.write_bytes(b"x")
    path.chmod(0o400)
    before = await store.identify((str(path),))
    path.chmod(0o440)
    assert await store.identify((str(path),)) == before
    path.chmod(0o660)
    written = await store.identify((str(path),))
    assert written != before
    path.chmod(0o666)
    assert await store.identify((str(path),)) != written


@pytest.mark.parametrize("earlier", [False, True])
def test_files_that_changed_hands_since_an_earlier_driver_are_what_they_were(
    earlier: bool,
) -> None:
    made = plan()
    if earlier:
        made = made.model_copy(update={"user": None})
    was = FileIdentity(path="/l", size=1, inode=2, modified_ns=3, changed_ns=4)
    now = {"handed over": {"changed_ns": 0}, "written": {"modified_ns": 5}}
    for what, changes in now.items():
        found = restore_check.file_differences(
            (was,), (was.model_copy(update=changes),), made
        )
        assert bool(found) == (what == "written" or not earlier), what


# --- tokens


def jwt(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{body}.c2ln"


@pytest.mark.parametrize(
    ("token", "expiry"),
    [
        (jwt({"exp": 1234}), 1234),
        (jwt({"exp": 0}), None),
        (jwt({}), None),
        (jwt([1]), None),
        (jwt({"exp": "soon"}), None),
        ("", None),
        ("opaque", None),
        ("a.b.c", None),
    ],
)
def test_when_a_token_ends(token: str, expiry: int | None) -> None:
    assert restore_check.token_expiry(token) == expiry


def test_a_digest_of_secrets_tells_any_of_them_apart() -> None:
    digest = secrets_digest
    assert digest({"a": b"bc"}) != digest({"ab": b"c"})
    assert digest({"a": b"1", "b": b"2"}) == digest({"b": b"2", "a": b"1"})


# --- the channel to the guest


@asynccontextmanager
async def served(path: Path, answer: Callable[[bytes], bytes]) -> AsyncIterator[None]:
    talks: list[asyncio.Task[None]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())
        try:
            while line := await reader.readline():
                writer.write(answer(line))
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(talk, path)
    try:
        yield
    finally:
        server.close()
        await asyncio.wait(talks, timeout=1) if talks else None


def number_of(line: bytes) -> bytes:
    return line.rpartition(b"\xff")[2].split()[0]


async def test_a_guest_that_hears_only_the_third_time_is_understood(
    tmp_path: Path,
) -> None:
    heard: list[bytes] = []

    def answer(line: bytes) -> bytes:
        heard.append(line)
        return (
            b"" if len(heard) < 3 else number_of(line) + b" ok a_ms=1.5 junk =x b=!\n"
        )

    async with served(tmp_path / "s", answer):
        assert await guest_channel.ask(str(tmp_path / "s"), "ping", dict, 5) == {
            "a_ms": "1.5"
        }
    assert len(set(heard)) == 1, "the same request, the same number"


@pytest.mark.parametrize(
    "answer",
    [
        lambda line: b"x" * 10000 + b"\n",
        lambda line: b"1 ok\n" * 500,
        lambda line: number_of(line) + b" error \x1b[31mno\n",
        lambda line: b"\0\n" * 300,
    ],
)
async def test_a_hostile_guest_gets_a_bounded_error(
    tmp_path: Path, answer: Callable[[bytes], bytes]
) -> None:
    async with served(tmp_path / "s", answer):
        with pytest.raises((HypervisorError, TimedOut)) as caught:
            await guest_channel.ask(
                str(tmp_path / "s"), "freeze", lambda: {"timeout_ms": "1"}, 1
            )
    assert "\x1b" not in str(caught.value)


async def test_a_question_is_made_when_the_machine_runs_on_a_channel_open_before(
    tmp_path: Path,
) -> None:
    steps: list[str] = []

    def answer(line: bytes) -> bytes:
        steps.append("asked")
        return number_of(line) + b" ok\n"

    def fields() -> dict[str, str]:
        steps.append("made")
        return {"clock_ns": "1"}

    async def begin() -> None:
        await asyncio.sleep(0.05)
        assert steps == [], "nothing was sent to a machine that does not run"
        (tmp_path / "s").unlink()  # whoever connects now is too late
        steps.append("runs")

    async with served(tmp_path / "s", answer):
        await guest_channel.ask(str(tmp_path / "s"), "renew", fields, 5, begin)
    assert steps[:3] == ["runs", "made", "asked"]
    with pytest.raises(HypervisorError):
        await guest_channel.ask(str(tmp_path / "s"), "renew", fields, 5, begin)
    assert steps.count("runs") == 1, "without a channel nothing is begun"


async def test_a_silent_guest_is_given_up(tmp_path: Path) -> None:
    async with served(tmp_path / "s", lambda _line: b""):
        with pytest.raises(TimedOut, match="freeze"):
            await guest_channel.ask(str(tmp_path / "s"), "freeze", dict, 0.2)
    with pytest.raises(HypervisorError):
        await guest_channel.ask(str(tmp_path / "none"), "freeze", dict, 0.2)
