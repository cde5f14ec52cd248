"""Files of a machine with something else in their place, or without an end: root is led nowhere,
waits for nobody, and holds no more of them than it needs.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.contract.canary import SECRET, watched
from vmdriver.errors import DriverError
from vmdriver.host.threads import Threads
from vmdriver.hypervisor.memory import capture
from vmdriver.lifecycle.ports.host import GuestReport, Ownership
from vmdriver.lifecycle.ports.memory import Streamed
from vmdriver.model.checkpoint import MEMORY, Part
from vmdriver.model.plan import MachineUser
from vmdriver.storage.checkpoints import Checkpoints
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout

TIB = 2**40
USER = MachineUser(uid=250002, gid=250000)


@dataclass
class Place:
    disks: DiskStore
    store: Checkpoints
    folder: Path

    @property
    def path(self) -> Path:
        """A status disk, console, layer or memory, as the use wants it."""
        return self.folder / MEMORY

    @property
    def canary(self) -> Path:
        return self.folder / "canary"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    layout, threads = Layout(tmp_path / "state"), Threads("storage", 2)
    layout.make()
    owner = Ownership(os.getuid(), os.getgid())
    folder = layout.root / "sandboxes" / "s"
    folder.mkdir()
    (folder / "canary").write_bytes(SECRET)
    disks = DiskStore(layout, threads, owner)
    yield Place(disks, Checkpoints(threads, owner), folder)
    threads.close()


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


INSTEAD: dict[str, Callable[[Place], object]] = {
    "a link": lambda place: place.path.symlink_to(place.canary),
    "a link to nothing": lambda place: place.path.symlink_to(place.folder / "new"),
    "a pipe": lambda place: os.mkfifo(place.path),
    "a socket": lambda place: _socket(place.path),
    "a terminal": lambda place: os.mknod(place.path, 0o020600, os.makedev(5, 0)),
    "a folder": lambda place: place.path.mkdir(),
    "nothing": lambda place: None,
}

USES: dict[str, Callable[[Place, str], Awaitable[object]]] = {
    "report": lambda place, path: place.disks.report(path),
    "console tail": lambda place, path: place.disks.console_tail(path),
    "bound console": lambda place, path: place.disks.bound_console(path),
    "flush status": lambda place, path: place.disks.flush_status(path),
    "freeze layer": lambda place, path: place.disks.freeze_layer(path, None),
    "freeze a machine's": lambda place, path: place.disks.freeze_layer(path, USER),
    "share layer": lambda place, path: place.disks.share_layer(path, USER),
    "sync layer": lambda place, path: place.disks.sync_layer(path),
    "digest": lambda place, path: place.store.damage(
        str(place.folder), (Part(name=MEMORY, size=1, stored=0, digests=("",)),)
    ),
    "lend": lambda place, path: place.store.lend(str(place.folder), USER),
    "share": lambda place, path: place.store.share(str(place.folder), USER),
    "take back": lambda place, path: place.store.take_back(str(place.folder)),
    "read ahead": lambda place, path: place.store.read_ahead(str(place.folder)),
    "cut": lambda place, path: asyncio.to_thread(
        capture.split, Streamed(path, "<domain/>"), str(place.canary), 4096
    ),
}


@pytest.mark.parametrize("instead", INSTEAD)
@pytest.mark.parametrize("use", USES)
async def test_what_is_no_plain_file_is_left_alone(
    use: str, instead: str, place: Place
) -> None:
    INSTEAD[instead](place)
    with watched(place.canary):
        async with asyncio.timeout(5):
            try:
                found = await USES[use](place, str(place.path))
            except (DriverError, OSError) as error:
                assert str(error)
            else:
                gone = [f"{MEMORY} is gone"]
                odd = [f"{MEMORY} has another size than it had"]
                assert found in [None, "", GuestReport(), gone, odd]
    assert not (place.folder / "new").exists()


@pytest.mark.parametrize("use", ["report", "console tail", "bound console"])
async def test_a_file_without_an_end_costs_no_memory(use: str, place: Place) -> None:
    with place.path.open("wb") as file:
        file.write(b"phase=started\n")
        file.truncate(TIB)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with asyncio.timeout(5):
        found = await USES[use](place, str(place.path))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 8 * 1024, f"{grown} KiB more"
    if use == "report":
        assert found == GuestReport("started")
    if use == "bound console":
        assert place.path.stat().st_size < 2**20
