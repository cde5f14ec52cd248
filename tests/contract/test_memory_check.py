"""Kept memory that is compared while a machine is made of it: by whatever hand it is changed, at whatever moment."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from tests.fakes.limits import limit
from vmdriver.errors import (
    LoadRefused,
    NotRestorable,
    StorageError,
    TimedOut,
    Unavailable,
)
from vmdriver.host.threads import Threads, finished
from vmdriver.lifecycle.memory.memory_check import MemoryCheck
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.memory import Captured
from vmdriver.model.checkpoint import Part
from vmdriver.storage import digests
from vmdriver.storage.checkpoints import Checkpoints
from vmdriver.storage.digests import (
    BLAKE3,
    BLOCK,
    SEGMENT,
    SHA256,
    digests_of,
    kind_of,
    segment_digest,
)

MIB = 2**20


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("test", 4)
    yield threads
    threads.close()


@pytest.fixture
def store(threads: Threads) -> Checkpoints:
    return Checkpoints(threads, Ownership(os.getuid(), os.getgid()))


@pytest.fixture
async def parts(store: Checkpoints, tmp_path: Path) -> tuple[Part, ...]:
    memory = Path(await store.begin(str(tmp_path / "i"), 1))
    with memory.open("r+b") as file:
        file.truncate(130 * MIB)
        for at in (0, 70 * MIB + 5, 130 * MIB - 3):
            file.seek(at)
            file.write(b"abc")
    captured = Captured(b"state", "<domain/>", 3, "pc-q35-7.2", "<cpu/>")
    return await store.write_parts(str(tmp_path / "i"), captured)


def timed(_name: str) -> AbstractContextManager[None]:
    return nullcontext()


def poke(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        old = file.read(1)
        file.seek(at)
        file.write(bytes([old[0] ^ 1]))


def put_back(path: Path) -> None:
    """It holds what it held, in another file."""
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


async def test_what_is_whole_passes_lent_and_taken_back_or_not(
    store: Checkpoints, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    directory = str(tmp_path / "i")
    await store.take_back(directory)
    check = MemoryCheck(store, directory, parts)
    async with check.under_way(timed):
        await store.lend(directory, None)
        await check.passed()
        await store.take_back(directory)
        await check.passed()


BEFORE = {
    "a bit at the beginning": lambda p: poke(p, 1),
    "a bit in what was a hole": lambda p: poke(p, 40 * MIB),
    "the last byte": lambda p: poke(p, 130 * MIB - 1),
    "cut": lambda p: os.truncate(p, 129 * MIB),
    "grown": lambda p: os.truncate(p, 131 * MIB),
    "a link": lambda p: (p.rename(f"{p}.s"), p.symlink_to(f"{p}.s")),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("change", BEFORE)
async def test_what_was_changed_before_does_not_pass(
    store: Checkpoints, tmp_path: Path, parts: tuple[Part, ...], change: str
) -> None:
    BEFORE[change](tmp_path / "i" / "memory")
    check = MemoryCheck(store, str(tmp_path / "i"), parts)
    with pytest.raises(NotRestorable, match="damaged: memory") as caught:
        async with check.under_way(timed):
            await check.passed()
    assert caught.value.reason == "ImageDamaged"


MEANWHILE: dict[str, Callable[[Path], object]] = {
    "written to where it was digested already": lambda p: poke(p, 1),
    "replaced by one with the same content": put_back,
    "gone": Path.unlink,
    "cut": lambda p: os.truncate(p, 129 * MIB),
}


@pytest.mark.parametrize("change", MEANWHILE)
async def test_what_is_changed_after_its_digest_and_before_it_is_mapped_does_not_pass(
    store: Checkpoints, tmp_path: Path, parts: tuple[Part, ...], change: str
) -> None:
    check, digested = MemoryCheck(store, str(tmp_path / "i"), parts), []
    real = store.damage

    async def found(directory: str, parts: tuple[Part, ...]) -> list[str]:
        digested.extend([await real(directory, parts)])
        MEANWHILE[change](tmp_path / "i" / "memory")
        return digested[0]

    store.damage = found  # type: ignore[method-assign]
    with pytest.raises(NotRestorable, match="damaged: memory"):
        async with check.under_way(timed):
            await check.passed()
    assert digested == [[]], "its digests were right"


async def test_whoever_gave_up_a_load_does_not_wait_for_the_digests(
    store: Checkpoints, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    check, never = MemoryCheck(store, str(tmp_path / "i"), parts), asyncio.Event()

    async def hangs(_directory: str, _parts: tuple[Part, ...]) -> list[str]:
        await never.wait()
        return []

    store.damage = hangs  # type: ignore[method-assign]
    async with asyncio.timeout(5), check.under_way(timed):
        await check.explain(TimedOut("given up"))
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]


async def test_a_refused_load_is_explained_by_damage_and_else_is_not(
    store: Checkpoints, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    check = MemoryCheck(store, str(tmp_path / "i"), parts)
    async with check.under_way(timed):
        await check.explain(LoadRefused("VQ 0 is inconsistent"))
    poke(tmp_path / "i" / "memory", 1)
    check = MemoryCheck(store, str(tmp_path / "i"), parts)
    async with check.under_way(timed):
        with pytest.raises(NotRestorable, match="memory has changed"):
            await check.explain(LoadRefused("VQ 0 is inconsistent"))


SMALL: dict[str, tuple[Callable[[Path], object], str]] = {
    "the state": (lambda d: poke(d / "state", 2), "state has changed"),
    "the domain": (lambda d: poke(d / "domain.xml", 2), "domain.xml has changed"),
    "a grown state": (lambda d: os.truncate(d / "state", 6), "state has another size"),
    "no state": (lambda d: (d / "state").unlink(), "state is gone"),
    "no memory": (lambda d: (d / "memory").unlink(), "memory is gone"),
    "a link": (
        lambda d: ((d / "state").rename(d / "s"), (d / "state").symlink_to(d / "s")),
        "state has another size",
    ),
}


@pytest.mark.parametrize("change", SMALL)
async def test_what_says_how_a_machine_is_made_is_what_was_written(
    store: Checkpoints, tmp_path: Path, parts: tuple[Part, ...], change: str
) -> None:
    directory = tmp_path / "i"
    found = await store.saved(str(directory), parts)
    assert (found.state, found.domain_xml) == (b"state", "<domain/>")
    do, told = SMALL[change]
    do(directory)
    with pytest.raises(NotRestorable, match=told) as caught:
        await store.saved(str(directory), parts)
    assert caught.value.reason == "ImageDamaged"


async def test_a_manifest_that_leaves_a_part_out_vouches_for_none(
    store: Checkpoints, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    for left_out in parts:
        rest = tuple(part for part in parts if part is not left_out)
        with pytest.raises(NotRestorable, match="not describe all"):
            await store.saved(str(tmp_path / "i"), rest)


@pytest.mark.parametrize(
    "size", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7, SEGMENT, SEGMENT + 5]
)
@pytest.mark.parametrize("kind", [BLAKE3, SHA256])
def test_bytes_have_the_digests_of_a_file_with_them(
    tmp_path: Path, size: int, kind: str
) -> None:
    data = bytearray(size)
    data[size // 3 : size // 3 + 3] = b"abc"[: min(3, size)]
    data[-1:] = b"z"[: min(1, size)]
    (tmp_path / "f").write_bytes(data)
    count = -(-len(data) // SEGMENT)
    of_file = tuple(
        segment_digest(tmp_path / "f", n, kind=kind)[0] for n in range(count)
    )
    assert digests_of(bytes(data), kind) == of_file
    assert not of_file or kind_of(of_file) == kind


@given(
    pieces=st.lists(
        st.tuples(
            st.integers(0, 40 * BLOCK),
            st.sampled_from([1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 20 * BLOCK]),
            st.sampled_from([b"\0", b"x", b"\0" * 63 + b"y", b"\0" * 64 + b"y"]),
        ),
        max_size=6,
    ),
    size=st.integers(0, 50 * BLOCK),
)
def test_holes_and_zeros_anywhere_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[int, int, bytes]],
    size: int,
) -> None:
    """What is read in batches has the digest that block by block has; files end anywhere."""
    path = tmp_path_factory.mktemp("digests") / "f"
    with path.open("wb") as file:
        file.truncate(size)
        for at, length, what in pieces:
            room = min(length, max(size - at, 0))
            file.seek(at)
            file.write((what * (room // len(what) + 1))[:room])
    data = path.read_bytes()
    by_block, stored = hashlib.sha256(), 0
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        if block.strip(b"\0"):
            by_block.update(at.to_bytes(8, "big") + block)
            stored += len(block)
    assert segment_digest(path, 0, kind=SHA256) == (by_block.hexdigest(), stored)
    if data:
        assert digests_of(data) == (segment_digest(path, 0)[0],)


async def test_a_checkpoint_of_0_1_0_is_compared_by_its_own_digests(
    store: Checkpoints, tmp_path: Path, parts: tuple[Part, ...]
) -> None:
    directory = tmp_path / "i"
    old = tuple(
        part.model_copy(
            update={
                "digests": tuple(
                    segment_digest(directory / part.name, n, kind=SHA256)[0]
                    for n in range(len(part.digests))
                )
            }
        )
        for part in parts
    )
    assert await store.damage(str(directory), old) == []
    await store.saved(str(directory), old)
    poke_at(directory / "memory", 5)
    (found,) = await store.damage(str(directory), old)
    assert "memory has changed" in found


async def test_a_disk_that_fails_is_no_damage(
    store: Checkpoints,
    tmp_path: Path,
    parts: tuple[Part, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither where it is read nor where it is asked for its holes."""

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    for call in ("preadv", "lseek"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            check = MemoryCheck(store, str(tmp_path / "i"), parts)
            async with check.under_way(timed):
                with pytest.raises(StorageError, match="cannot be read"):
                    await check.passed()


class SlowDisk:
    """Reads from it take until it goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reading, self.go = threading.Event(), threading.Event()
        self._real = os.preadv
        monkeypatch.setattr(os, "preadv", self._read)

    def _read(self, *arguments: Any) -> int:
        self.reading.set()
        assert self.go.wait(30)
        return self._real(*arguments)


async def begun(disk: SlowDisk) -> None:
    async with asyncio.timeout(5):
        while not disk.reading.is_set():
            await asyncio.sleep(0.001)


async def test_whoever_gives_a_check_up_does_not_wait_for_a_disk_that_hangs(
    store: Checkpoints,
    tmp_path: Path,
    parts: tuple[Part, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk, directory = SlowDisk(monkeypatch), str(tmp_path / "i")
    check, ended = MemoryCheck(store, directory, parts), asyncio.Event()

    async def machine() -> None:
        """As an effect on the host: it is not cut off."""
        with pytest.raises(Unavailable, match="given up"):
            await check.passed()
        ended.set()

    async def start() -> None:
        async with check.under_way(timed):
            await check.beside(finished(machine()))

    started = asyncio.create_task(start())
    await begun(disk)
    before = time.monotonic()
    started.cancel()
    with pytest.raises(asyncio.CancelledError):
        await started
    assert ended.is_set()
    assert time.monotonic() - before < 5
    with pytest.raises(TimedOut, match="no answer to 'read i/memory' yet"):
        await store.damage(directory, parts)
    disk.go.set()
    assert await store.damage(directory, parts) == []


async def test_a_check_that_is_given_up_reads_no_further(
    store: Checkpoints,
    tmp_path: Path,
    parts: tuple[Part, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what is begun at once after it does not fail for it."""
    disk, directory = SlowDisk(monkeypatch), str(tmp_path / "i")
    looking = asyncio.create_task(store.damage(directory, parts))
    await begun(disk)
    looking.cancel()
    await asyncio.wait({looking})
    asyncio.get_running_loop().call_later(0.05, disk.go.set)
    assert await store.damage(directory, parts) == []


async def test_a_disk_that_answers_nothing_is_given_up(
    store: Checkpoints,
    tmp_path: Path,
    parts: tuple[Part, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = SlowDisk(monkeypatch)
    limit(monkeypatch, read_s=0.05)
    check = MemoryCheck(store, str(tmp_path / "i"), parts)
    async with check.under_way(timed):
        with pytest.raises(TimedOut, match="read i/memory: no answer"):
            await check.passed()
    disk.go.set()


async def test_a_large_memory_leaves_threads_for_others(
    threads: Threads,
    store: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a large one's segments no more are under way than there are cores, in threads of their own."""
    memory = Path(await store.begin(str(tmp_path / "big"), 1))
    os.truncate(memory, 64 * SEGMENT)
    for at in range(64):
        poke_at(memory, at * SEGMENT)
    under_way, most, real = set[int](), list[int](), digests.segment_digest

    def counted(*arguments: Any) -> tuple[str, int]:
        me = threading.get_ident()
        assert not threading.current_thread().name.startswith("vmdriver-test")
        under_way.add(me)
        most.append(len(under_way))
        time.sleep(0.001)
        try:
            return real(*arguments)
        finally:
            under_way.discard(me)

    monkeypatch.setattr(digests, "segment_digest", counted)
    captured = Captured(b"state", "<domain/>", 3, "pc-q35-7.2", "<cpu/>")
    found = await store.write_parts(str(tmp_path / "big"), captured)
    assert len(found[0].digests) == len(set(found[0].digests)) == 64
    assert 2 <= max(most) <= 4


def poke_at(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"x")
