"""Volumes' copies on a real file system."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdriver.errors import StorageError
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.plan import MachineUser
from vmdriver.model.record import utc_now
from vmdriver.model.volume import Volume
from vmdriver.storage import raw_disks
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout
from vmdriver.storage.paths import FilePaths
from vmdriver.storage.volume_copies import VolumeCopies
from vmdriver.storage.volumes import Volumes

MIB = 2**20
USER = MachineUser(uid=250_101, gid=250_001)
DATA = Volume(workspace="w", name="data", size_mib=64, created_at=utc_now())
ROOT = Ownership(0, 0)
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners")


class Place:
    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.layout.make()
        self.threads, self.numbers = Threads("volumes", 2), UserNamespace()
        self.store = Volumes(self.layout, self.threads, numbers=self.numbers)
        self.copies = VolumeCopies(self.layout, self.threads, ROOT)
        self.disks = DiskStore(self.layout, self.threads, ROOT)
        self.paths = FilePaths(self.layout)
        self.disk = self.layout.volume(DATA.id).disk

    async def volume(self) -> dict[int, bytes]:
        """What was written to it besides its file system."""
        await self.store.make(DATA)
        await self.store.publish(DATA)
        found = {5 * MIB + 3: os.urandom(3 * MIB), 64 * MIB - 5: b"last!"}
        write(self.disk, found)
        return found

    async def content(self, path: str) -> list[Piece]:
        return [piece async for piece in self.copies.content(path)]


def write(path: Path, parts: dict[int, bytes]) -> None:
    with path.open("r+b") as file:
        for at, data in parts.items():
            file.seek(at)
            file.write(data)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "state")
    yield place
    place.threads.close()
    place.numbers.close()


async def test_a_copy_is_sparse_whole_and_ours(place: Place) -> None:
    await place.volume()
    path = place.paths.volume_copy("s1", USER)
    await place.copies.begin(path, 64, USER, writes=False)
    await place.copies.copy(DATA.id, path)
    size = await place.copies.seal(path, 64)
    assert size == Path(path).stat().st_blocks * 512 < 16 * MIB
    assert Path(path).read_bytes() == place.disk.read_bytes()
    found, whole = await place.content(path), bytearray(64 * MIB)
    for piece in found:
        whole[piece.offset : piece.offset + len(piece.data)] = piece.data
    assert whole == place.disk.read_bytes()
    assert found[-1] == Piece(64 * MIB, b"")
    assert await place.disks.layers("s1") == await place.disks.layers() == [path]
    assert await place.disks.layers("s") == []
    assert await place.disks.own_layers("s1") == {}, "it is no layer"
    await place.disks.remove(path)
    assert await place.disks.layers() == []


async def test_where_blocks_cannot_be_linked_or_copied_by_the_kernel_they_are_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", none)
    await test_a_copy_is_sparse_whole_and_ours(place)


async def test_a_machine_writes_to_its_copy_until_that_is_sealed(place: Place) -> None:
    path = place.paths.volume_copy("s1", USER)
    await place.copies.begin(path, 32, USER, writes=True)
    info = Path(path).stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (USER.uid, 0o600)
    assert info.st_size == 32 * MIB
    with Path(path).open("r+b") as file:
        file.truncate(48 * MIB)
        file.write(b"by a QEMU")
        file.flush()
        with pytest.raises(StorageError) as caught:
            await place.copies.seal(path, 32)
        assert caught.value.reason == "LayerHeld"
    os.chmod(path, 0o666)
    await place.copies.seal(path, 32)
    info = Path(path).stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)
    assert info.st_size == 32 * MIB
    assert (await place.content(path))[0].data.startswith(b"by a QEMU")


async def test_a_copy_that_is_a_link_leads_nowhere(place: Place) -> None:
    path = place.paths.volume_copy("s1", USER)
    await place.copies.begin(path, 32, USER, writes=True)
    secret = place.layout.root / "secret"
    secret.write_text("secret")
    Path(path).unlink()
    Path(path).symlink_to(secret)
    with pytest.raises(StorageError):
        await place.copies.seal(path, 32)
    with pytest.raises(StorageError):
        await place.content(path)
    assert secret.stat().st_size == 6


async def test_a_volume_is_put_back_whole_once_or_never(place: Place) -> None:
    await place.volume()
    before = place.disk.read_bytes()
    path = place.paths.volume_copy("s1", USER)
    await place.copies.begin(path, 64, USER, writes=False)
    await place.copies.copy(DATA.id, path)
    await place.copies.seal(path, 64)
    write(place.disk, {0: b"x" * MIB})
    after = place.disk.read_bytes()
    await place.copies.prepare(DATA.id, path, 64)
    assert place.disk.read_bytes() == after
    await place.copies.drop_back(DATA.id)
    await place.copies.put_back(DATA.id)
    assert place.disk.read_bytes() == after
    for _ in range(2):  # what was left is replaced
        await place.copies.prepare(DATA.id, path, 128)
    assert await place.store.load_all() == ([DATA], {})
    for _ in range(2):
        await place.copies.put_back(DATA.id)
        assert place.disk.read_bytes() == before + bytes(64 * MIB)
    info = place.disk.stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)
    names = sorted(p.name for p in place.disk.parent.iterdir())
    assert names == ["disk.raw", "volume.json"]


async def test_copying_that_is_cut_off_leaves_nothing_open_and_no_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    await place.volume()
    path = place.paths.volume_copy("s1", USER)
    await place.copies.begin(path, 64, USER, writes=False)
    await place.copies.copy(DATA.id, path)
    copy_some, begun = raw_disks.copy_some, asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(*arguments: int) -> int | None:
        loop.call_soon_threadsafe(begun.set)
        return copy_some(*arguments) or 0  # it never ends

    monkeypatch.setattr(raw_disks, "copy_some", slow)
    task = asyncio.ensure_future(place.copies.prepare(DATA.id, path, 64))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await place.copies.put_back(DATA.id)
    assert place.layout.volume(DATA.id).back_part.exists()
    await place.copies.drop_back(DATA.id)
    assert not place.layout.volume(DATA.id).back_part.exists()
    open_now = [os.path.realpath(p) for p in Path("/proc/self/fd").iterdir()]
    assert not [p for p in open_now if p.startswith(str(place.layout.root))]
