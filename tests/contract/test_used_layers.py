"""A layer that a machine may have written to is never made anew, whatever the ledger has lost."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmdriver.errors import StorageError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.engine.resource import OVERLAY
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import Disk
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes.journal import FileJournal

MIB = 2**20


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.make()
    for name in ("base", "other"):
        (layout.root / name).write_bytes(b"\0" * 8 * MIB)
    return layout


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads("storage", 2)
    yield threads
    threads.close()


@pytest.fixture
def disks(layout: Layout, threads: Threads) -> DiskStore:
    return DiskStore(layout, threads, Ownership(os.getuid(), os.getgid()))


def layer(layout: Layout, base: str = "base", name: str = "a") -> Disk:
    return Disk(
        role="root",
        path=str(layout.layers / f"{name}.qcow2"),
        format="qcow2",
        read_only=False,
        backing=(str(layout.root / base),),
    )


def io(command: str, path: str) -> str:
    done = subprocess.run(
        ["qemu-io", "-c", command, path], check=True, capture_output=True, text=True
    )
    return done.stdout


async def test_a_disk_whose_making_the_ledger_has_lost_is_kept(
    disks: DiskStore, layout: Layout, threads: Threads, tmp_path: Path
) -> None:
    """A full disk had torn the line; the next start acquires the layer once more."""
    disk, path = layer(layout), tmp_path / "ledger"

    async def launch() -> None:
        ledger = Ledger(FileJournal(path, threads))
        await ledger.acquire(
            OVERLAY,
            Scope.PERSISTENT,
            {"path": disk.path},
            lambda: disks.create_overlay(disk, None),
        )

    await launch()
    io("write -P 7 0 512", disk.path)
    os.chmod(disk.path, 0o400)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b'{"op":"done"') + 9])
    await launch()
    assert "verification failed" not in io("read -P 7 0 512", disk.path)
    assert stat.S_IMODE(os.stat(disk.path).st_mode) == 0o600, "QEMU writes to it"
    path.unlink()
    await launch()
    assert "verification failed" not in io("read -P 7 0 512", disk.path)


@pytest.mark.parametrize("kept", [0, 100, 65536, 196608])
async def test_one_that_was_never_finished_is_made_anew(
    disks: DiskStore, layout: Layout, kept: int
) -> None:
    disk = layer(layout)
    await disks.create_overlay(disk, None)
    os.truncate(disk.path, kept)
    await disks.create_overlay(disk, None)
    io("write -P 7 0 512", disk.path)
    assert "verification failed" not in io("read -P 7 0 512", disk.path)


@pytest.mark.parametrize("harm", ["other base", "zeros", "corrupt", "raw"])
async def test_a_used_one_that_is_not_what_is_wanted_is_left_and_told(
    disks: DiskStore, layout: Layout, harm: str
) -> None:
    disk = layer(layout)
    await disks.create_overlay(disk, None)
    io("write -P 7 0 1M", disk.path)
    with open(disk.path, "r+b") as file:
        if harm == "corrupt":
            file.seek(79)
            file.write(b"\x02")
        if harm in {"zeros", "raw"}:
            file.write(b"\0" * 4096 if harm == "zeros" else b"x" * 4096)
    was = Path(disk.path).read_bytes()
    wanted = layer(layout, "other") if harm == "other base" else disk
    with pytest.raises(StorageError, match="left as it is") as raised:
        await disks.create_overlay(wanted, None)
    assert raised.value.reason == "LayerDamaged"
    assert Path(disk.path).read_bytes() == was


async def test_a_finished_layer_is_told_from_a_half_made_one(
    disks: DiskStore, layout: Layout
) -> None:
    disk = layer(layout)
    below, other = disk.backing[0], str(layout.root / "other")
    assert not await disks.is_whole(disk.path, below)
    await disks.create_overlay(disk, None)
    assert await disks.is_whole(disk.path, below)
    assert not await disks.is_whole(disk.path, other)
    link = layout.root / "link"
    link.symlink_to(below)
    assert await disks.is_whole(disk.path, str(link)), "it is the same file"
    shutil.copy(other, disk.path)
    assert not await disks.is_whole(disk.path, below)


async def test_a_layer_whose_making_was_cut_off_is_half_made_unless_it_was_written_to(
    disks: DiskStore, layout: Layout
) -> None:
    """qemu-img had made a qcow2 file of it, and not come to what it stands on."""
    disk = layer(layout)
    command = ["qemu-img", "create", "-q", "-f", "qcow2", disk.path, "8M"]
    subprocess.run(command, check=True)
    assert not await disks.is_whole(disk.path, disk.backing[0])
    io("write 0 1M", disk.path)
    with pytest.raises(StorageError, match="does not say what it stands on"):
        await disks.is_whole(disk.path, disk.backing[0])
