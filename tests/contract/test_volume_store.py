"""Volumes on a real file system, with the real mke2fs in its box."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vmdriver.errors import AlreadyExists, Exhausted, StorageError
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.host.users import access_list
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.plan import MachineUser
from vmdriver.model.record import utc_now
from vmdriver.model.volume import Volume
from vmdriver.storage import files
from vmdriver.storage.layout import Layout
from vmdriver.storage.volumes import Volumes

MIB = 2**20
ONE, OTHER = (
    MachineUser(uid=250_101, gid=250_001),
    MachineUser(uid=250_102, gid=250_001),
)
DATA = Volume(workspace="w", name="data", size_mib=64, created_at=utc_now())
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.make()
    return layout


@pytest.fixture
def store(layout: Layout) -> Iterator[Volumes]:
    threads, numbers = Threads("volumes", 2), UserNamespace()
    yield Volumes(layout, threads, numbers=numbers)
    threads.close()
    numbers.close()


async def made(store: Volumes, layout: Layout, volume: Volume = DATA) -> Path:
    """Its disk."""
    await store.make(volume)
    await store.publish(volume)
    return layout.volume(volume.id).disk


def modes(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, stat.S_IMODE(found.st_mode)


async def pieces(*found: Piece) -> AsyncIterator[Piece]:
    for piece in found:
        yield piece


async def test_a_new_volume_is_an_empty_sparse_file_system(
    store: Volumes, layout: Layout
) -> None:
    disk = await made(store, layout)
    assert disk.stat().st_size == 64 * MIB
    assert await store.stored_bytes(DATA.id) < 8 * MIB
    subprocess.run(["e2fsck", "-fn", str(disk)], check=True, capture_output=True)
    assert modes(disk) == (0, 0o600)
    assert modes(layout.volume(DATA.id).root) == (0, 0o711)
    assert await store.load_all() == ([DATA], {})
    await store.make(DATA)
    with pytest.raises(AlreadyExists):
        await store.publish(DATA)
    await store.discard(DATA)
    assert [p.name for p in layout.volumes.iterdir()] == [DATA.id]


async def test_what_was_begun_and_what_was_going_is_gone_at_the_next_start(
    store: Volumes, layout: Layout
) -> None:
    await store.make(DATA)
    (layout.volumes / ".gone-x").mkdir()
    assert await store.load_all() == ([], {})
    assert len(list(layout.volumes.iterdir())) == 2, "who only looks changes nothing"
    await store.tidy()
    assert not list(layout.volumes.iterdir())


async def test_what_cannot_be_read_is_said_and_left_alone(
    store: Volumes, layout: Layout
) -> None:
    disk = await made(store, layout)
    note = layout.volume(DATA.id).note
    for text, why in (
        (b"{", "JSON"),
        (json.dumps({**json.loads(DATA.model_dump_json()), "name": "x"}).encode(), "x"),
        (json.dumps({**json.loads(DATA.model_dump_json()), "new": 1}).encode(), "new"),
    ):
        note.write_bytes(text)
        found, problems = await store.load_all()
        assert not found
        assert why in problems[DATA.id]
    note.unlink()
    os.mkfifo(note)
    assert (await store.load_all())[1]
    note.unlink()
    await store.note(DATA)
    disk.rename(disk.with_name("elsewhere"))
    disk.symlink_to("elsewhere")
    assert "disk is missing" in (await store.load_all())[1][DATA.id]


async def test_a_disk_is_its_machines_while_that_has_it(
    store: Volumes, layout: Layout
) -> None:
    disk = await made(store, layout)
    await store.let_in(DATA, ONE, read_only=False)
    assert modes(disk) == (ONE.uid, 0o600)
    assert not access_list.is_there(disk)
    await store.take_back(DATA.id, ONE.uid)
    assert modes(disk) == (0, 0o600)
    await store.let_in(DATA, ONE, read_only=True)
    await store.let_in(DATA, OTHER, read_only=True)
    assert disk.stat().st_uid == 0
    assert access_list.users(disk) == {ONE.uid, OTHER.uid}
    assert not disk.stat().st_mode & 0o222
    await store.take_back(DATA.id, ONE.uid)
    assert access_list.users(disk) == {OTHER.uid}
    await store.let_in(DATA, ONE, read_only=False)
    assert modes(disk) == (ONE.uid, 0o600)
    assert not access_list.is_there(disk), "who has read it does not any more"
    await store.take_back("0" * 32, ONE.uid)


async def test_a_disk_that_somebody_can_write_to_is_given_to_nobody(
    store: Volumes, layout: Layout
) -> None:
    disk = await made(store, layout)
    with disk.open("r+b"), pytest.raises(StorageError) as caught:
        await store.let_in(DATA, ONE, read_only=False)
    assert caught.value.reason == "VolumeHeld"
    await store.let_in(DATA, ONE, read_only=False)
    real = disk.with_name("real")
    disk.rename(real)
    disk.symlink_to(real)
    before = real.stat()
    with pytest.raises(StorageError):
        await store.let_in(DATA, OTHER, read_only=False)
    assert real.stat() == before


async def test_a_volume_grows_also_where_that_was_cut_off(
    store: Volumes, layout: Layout
) -> None:
    disk = await made(store, layout)
    larger = DATA.model_copy(update={"size_mib": 128})
    await store.note(larger)
    assert disk.stat().st_size == 64 * MIB
    await store.let_in(larger, ONE, read_only=False)
    assert disk.stat().st_size == 128 * MIB
    await store.grow(larger.model_copy(update={"size_mib": 256}))
    assert disk.stat().st_size == 256 * MIB
    await store.grow(DATA)
    assert disk.stat().st_size == 256 * MIB, "it never becomes smaller"


async def test_an_export_and_an_import_make_a_copy(
    store: Volumes, layout: Layout
) -> None:
    disk = await made(store, layout)
    with disk.open("r+b") as file:
        for at in (5 * MIB + 3, 64 * MIB - 5):
            os.pwrite(file.fileno(), b"some", at)
    found = [piece async for piece in store.content(DATA)]
    assert found[-1] == Piece(64 * MIB, b"")
    assert all(len(piece.data) <= MIB for piece in found)
    copy = DATA.model_copy(update={"name": "copy"})
    await store.receive(copy, pieces(*found[:-1]))
    await store.publish(copy)
    assert layout.volume(copy.id).disk.read_bytes() == disk.read_bytes()
    assert await store.stored_bytes(copy.id) < 12 * MIB
    assert modes(layout.volume(copy.id).disk) == (0, 0o600)


@pytest.mark.parametrize("offset", [-1, 64 * MIB, 64 * MIB - 3])
async def test_nothing_is_imported_outside_of_the_disk(
    store: Volumes, layout: Layout, offset: int
) -> None:
    with pytest.raises(StorageError, match="outside"):
        await store.receive(DATA, pieces(Piece(offset, b"some")))
    await store.discard(DATA)
    assert not list(layout.volumes.iterdir())


async def test_a_disk_that_is_nearly_full_takes_no_volume(layout: Layout) -> None:
    threads = Threads("volumes", 2)
    store = Volumes(layout, threads, numbers=UserNamespace(), free_kept=2**62)
    with pytest.raises(Exhausted, match="MiB are free"):
        await store.make(DATA)
    with pytest.raises(Exhausted):
        await store.receive(DATA, pieces(Piece(0, b"a")))
    threads.close()


async def test_a_removed_volume_is_gone(store: Volumes, layout: Layout) -> None:
    await made(store, layout)
    await store.remove(DATA.id)
    assert await store.load_all() == ([], {})
    assert not list(layout.volumes.iterdir())
    await store.remove(DATA.id)


def opened_in(layout: Layout) -> list[str]:
    """Files of volumes that this process has open."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the look's own
            found.append(path.readlink())
    return [str(link) for link in found if link.is_relative_to(layout.volumes)]


@pytest.mark.parametrize("most", [1, 4096, MIB - 1])
async def test_what_the_disk_takes_in_parts_is_written_to_its_end(
    store: Volumes, layout: Layout, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, data = os.pwrite, os.urandom(16 * 1024 if most == 1 else MIB)

    def short(descriptor: int, part: bytes, offset: int) -> int:
        return write(descriptor, part[:most], offset)

    monkeypatch.setattr(os, "pwrite", short)
    await store.receive(DATA, pieces(Piece(3 * MIB, data)))
    await store.publish(DATA)
    (found, _end) = [piece async for piece in store.content(DATA)]
    assert found.data[: len(data)] == data


async def test_an_import_that_is_too_large_for_any_file_leaves_nothing_open(
    store: Volumes, layout: Layout
) -> None:
    with pytest.raises(StorageError, match="cannot be made"):
        await store.receive(DATA.model_copy(update={"size_mib": 2**42}), pieces())
    assert opened_in(layout) == []


async def test_an_import_that_is_cancelled_while_it_begins_leaves_nothing_open(
    store: Volumes, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let_go, truncate = threading.Event(), threading.Event(), os.ftruncate

    def slow(descriptor: int, size: int) -> None:
        begun.set()
        let_go.wait()
        truncate(descriptor, size)

    monkeypatch.setattr(os, "ftruncate", slow)
    task = asyncio.ensure_future(store.receive(DATA, pieces()))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert opened_in(layout) == []


async def test_an_export_that_is_cancelled_while_it_begins_leaves_nothing_open(
    layout: Layout,
) -> None:
    threads, let_go = Threads("volumes", 1), threading.Event()
    store = Volumes(layout, threads, numbers=UserNamespace())
    await made(store, layout)
    blocked = asyncio.ensure_future(threads.run(let_go.wait))
    await asyncio.sleep(0)
    task = asyncio.ensure_future(anext(aiter(store.content(DATA))))
    for _ in range(3):  # it waits behind the other
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await blocked
    assert opened_in(layout) == []
    threads.close()


async def test_a_volume_whose_name_cannot_be_made_durable_is_none(
    store: Volumes, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = files.sync_directory

    def failing(path: Path) -> None:
        if path == layout.volumes:
            raise OSError(errno.EIO, "no more")
        sync(path)

    await store.make(DATA)
    monkeypatch.setattr(files, "sync_directory", failing)
    with pytest.raises(StorageError, match="no more"):
        await store.publish(DATA)
    monkeypatch.undo()
    assert await store.load_all() == ([], {})
    await store.discard(DATA)
    assert not list(layout.volumes.iterdir())
    assert await made(store, layout)
