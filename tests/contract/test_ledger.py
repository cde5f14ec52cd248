"""The ledger on its journal, where the disk is full, short, or at fault, and where several tasks
write at once.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdriver.errors import StorageError, Unavailable
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope, replay
from vmdriver.storage.sandboxes.journal import FileJournal, read_lines

WIDE = {"text": "x" * 900}


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("journal", 4)
    yield threads
    threads.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 KiB."""
    path = tmp_path / "small"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", "size=32k", "vmdriver-test", str(path)]
    subprocess.run(["mount", *options], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def fill(directory: Path) -> Path:
    """Use every byte that is free."""
    ballast = directory / "ballast"
    with ballast.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(b"b" * 4096)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                return ballast


async def nothing(*_: object) -> None:
    return


def on_disk(path: Path) -> list[Held]:
    return list(replay(read_lines(path)).values())


async def test_on_a_full_disk_a_line_is_whole_or_not_there_at_all(
    small_disk: Path, threads: Threads
) -> None:
    path = small_disk / "ledger"
    ledger = Ledger(FileJournal(path, threads))
    await ledger.acquire("root", Scope.PERSISTENT, WIDE, nothing)
    ballast = fill(small_disk)
    refused = 0
    for number in range(12):  # the last block of the file has some room
        before = path.read_bytes()
        try:
            await ledger.acquire(f"{number}", Scope.RUNTIME, WIDE, nothing)
        except StorageError as error:
            refused += 1
            assert error.reason == "DiskFull"
            assert path.read_bytes().startswith(before)
        assert path.read_bytes().endswith(b"\n")
        assert on_disk(path) == list(ledger.held())
    assert refused > 5
    ballast.unlink()
    await ledger.acquire("late", Scope.RUNTIME, WIDE, nothing)
    assert on_disk(path) == list(ledger.held())
    assert next(h.key for h in ledger.held() if h.done) == "root"


async def test_on_a_full_disk_everything_is_undone_and_struck_when_there_is_space(
    small_disk: Path, threads: Threads
) -> None:
    path = small_disk / "ledger"
    ledger = Ledger(FileJournal(path, threads))
    await ledger.acquire("root", Scope.PERSISTENT, WIDE, nothing)
    for key in ("tap", "machine", "frozen"):
        await ledger.acquire(key, Scope.RUNTIME, {}, nothing)
    filler = path.stat().st_size % 4096
    await ledger.remember("root", {"text": "x" * (4096 - filler - 60)})
    ballast = fill(small_disk)
    undone: list[str] = []

    async def undo(held: Held) -> None:
        undone.append(held.key)

    with pytest.raises(StorageError):
        await ledger.release(Scope.RUNTIME, undo)
    assert undone == ["frozen", "machine", "tap"], "a full disk keeps nothing frozen"
    assert len(ledger.held(Scope.RUNTIME)) == 3
    assert on_disk(path) == list(ledger.held())
    ballast.unlink()
    assert await ledger.release(Scope.RUNTIME, undo) == []
    assert on_disk(path) == list(ledger.held())
    fill(small_disk)
    assert await ledger.release(None, undo) == [], "a delete needs no space"
    assert undone[-1] == "root"
    assert on_disk(path) == []


@pytest.mark.parametrize("most", [1, 7, 40])
async def test_a_short_write_is_completed(
    most: int, tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def short(descriptor: int, data: bytes, offset: int) -> int:
        return write(descriptor, bytes(data[:most]), offset)

    monkeypatch.setattr(os, "pwrite", short)
    path = tmp_path / "ledger"
    ledger = Ledger(FileJournal(path, threads))
    for key in ("root", "tap"):
        await ledger.acquire(key, Scope.PERSISTENT, {"key": key}, nothing)
    assert on_disk(path) == list(ledger.held())
    assert all(held.done for held in on_disk(path))


@pytest.mark.parametrize("failing", ["fdatasync", "pwrite", "ftruncate"])
async def test_after_a_failed_write_the_next_one_stands_on_what_was_durable(
    failing: str, tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(FileJournal(path, threads))
    await ledger.acquire("root", Scope.PERSISTENT, {}, nothing)
    broken, write = True, os.pwrite

    def torn(descriptor: int, data: bytes, offset: int) -> int:
        """Half of it arrives, then the disk fails."""
        if not broken:
            return write(descriptor, data, offset)
        write(descriptor, bytes(data[: len(data) // 2]), offset)
        raise OSError(errno.EIO, "broken")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as broken_disk:
        if failing == "fdatasync":
            broken_disk.setattr(os, "fdatasync", fail)
        else:
            broken_disk.setattr(os, "pwrite", torn)
        if failing == "ftruncate":
            broken_disk.setattr(os, "ftruncate", fail)
        with pytest.raises(StorageError):
            await ledger.remember("root", {"lost": True})
    broken = False
    assert dict(ledger.get("root").data) == {}
    await ledger.acquire("tap", Scope.RUNTIME, {}, nothing)
    assert on_disk(path) == list(ledger.held())
    assert [h.key for h in on_disk(path)] == ["root", "tap"]


async def give_back(
    scope: Scope | None, ledger: Ledger, effects: set[str], cut_off: set[str]
) -> None:
    undone: list[str] = []

    async def undo(entry: Held) -> None:
        await asyncio.sleep(0)
        effects.discard(entry.key)
        undone.append(entry.key)

    try:
        await ledger.release(scope, undo)
    except asyncio.CancelledError:
        cut_off.update(undone)
        raise


async def test_writes_of_many_tasks_leave_the_file_as_the_memory_is(
    tmp_path: Path, threads: Threads
) -> None:
    chance = random.Random(6)
    for round_ in range(20):
        path = tmp_path / f"ledger-{round_}"
        ledger = Ledger(FileJournal(path, threads))
        effects: set[str] = set()
        cut_off: set[str] = set()
        """Undone by a release that was cancelled before it could strike them: held still."""

        async def come_and_go(
            key: str, ledger: Ledger, effects: set[str], cut_off: set[str]
        ) -> None:
            async def effect() -> None:
                await asyncio.sleep(0)
                effects.add(key)

            for _ in range(6):
                scope = chance.choice([Scope.RUNTIME, Scope.CAPTURE])
                try:
                    await ledger.acquire(key, scope, {}, effect)
                    await ledger.remember(key, {"n": chance.random()})
                    if chance.random() < 0.5:
                        await give_back(scope, ledger, effects, cut_off)
                except Unavailable:
                    await asyncio.sleep(0)

        tasks = [
            asyncio.create_task(come_and_go(key, ledger, effects, cut_off))
            for key in "aabbccddee"
        ]
        for task in chance.sample(tasks, 3):
            asyncio.get_running_loop().call_later(chance.random() / 50, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert list(ledger.held()) == on_disk(path)
        assert effects <= {held.key for held in ledger.held()}, "held by nobody"
        done = {held.key for held in ledger.held() if held.done}
        assert done <= effects | cut_off
        await give_back(None, ledger, effects, cut_off)
        assert (ledger.held(), effects, on_disk(path)) == ((), set(), [])


@pytest.mark.parametrize(
    "lines",
    [
        '{"op":"done","key":"root"}',
        '{"op":"data","key":"root","data":{}}',
        '{"op":"moved","key":"root"}',
        '{"op":"intent","key":"root","scope":"eternal","data":{}}',
        '{"op":"intent","key":"root","scope":"runtime"}',
        '{"op":"intent","key":"root","scope":"runtime","data":[]}',
        '{"op":"intent","key":7,"scope":"runtime","data":{}}',
        '{"op":"frobnicate","key":"root"}',
        '{"key":"root"}',
        "[]",
        "\0\0\0\0\0\0\0",
        '{"op":"int',
    ],
)
def test_lines_that_make_no_sense_are_an_error_that_says_what_to_do(
    lines: str, tmp_path: Path, threads: Threads
) -> None:
    path = tmp_path / "ledger"
    path.write_text(lines + "\n")
    with pytest.raises(StorageError) as caught:
        Ledger(FileJournal(path, threads))
    assert "backup" in caught.value.resolution


def test_a_ledger_that_is_no_file_is_an_error_like_the_others(
    tmp_path: Path, threads: Threads
) -> None:
    (tmp_path / "ledger").mkdir()
    with pytest.raises(StorageError, match="cannot be read"):
        Ledger(FileJournal(tmp_path / "ledger", threads))
