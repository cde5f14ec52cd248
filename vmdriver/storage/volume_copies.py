"""Volumes as they were at a snapshot: implements lifecycle.ports.volumes.CopyStore.

A copy is a raw disk beside its sandbox's layers, where the machine's QEMU finds it too. Nothing
here reads one but to copy it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path

from vmdriver.errors import Exhausted, StorageError
from vmdriver.host.plain_file import is_open_to_write
from vmdriver.host.threads import Threads
from vmdriver.host.users import ownership
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.volumes import FREE_KEPT, Piece
from vmdriver.model.plan import MachineUser
from vmdriver.storage import files, raw_disks
from vmdriver.storage.layers.possession import Possession
from vmdriver.storage.layout import Layout, VolumeFiles

_MIB = 2**20
_WAY_OUT = "free space in the state directory"
_WHAT = "a volume cannot be copied"
_NOT_BACK = "a volume cannot be put back"


class VolumeCopies:
    """Of one driver. `owner`: see Possession."""

    def __init__(self, layout: Layout, threads: Threads, owner: Ownership) -> None:
        self._layout, self._threads = layout, threads
        self._possession = Possession(layout, owner)

    async def begin(
        self, path: str, size_mib: int, user: MachineUser | None, *, writes: bool
    ) -> None:
        def begin() -> None:
            with files.or_error(_WHAT, _WAY_OUT), ExitStack() as opened:
                place = Path(path)
                _check_room(self._layout.layers)
                self._possession.open_folder(place.parent, user)
                raw_disks.create(place, size_mib * _MIB, opened)
                if writes:
                    self._possession.give(place, user)
                files.sync_directory(place.parent)

        await self._threads.run(begin)

    async def copy(self, volume_id: str, path: str) -> None:
        with files.or_error(_WHAT, _WAY_OUT):
            await self._copy(self._layout.volume(volume_id).disk, Path(path))

    async def _copy(self, source: Path, target: Path) -> None:
        """OSError. A part at a time: whoever is cancelled waits for no more than that."""
        run = self._threads.run
        with ExitStack() as opened:
            here = await run(raw_disks.open_disk, source, opened)
            there = await run(raw_disks.open_disk, target, opened, os.O_RDWR)
            at: int | None = 0
            while at is not None:
                await run(_check_room, target.parent)
                at = await run(raw_disks.copy_some, here, there, at)
            await run(os.fsync, there)

    async def seal(self, path: str, size_mib: int) -> int:
        def seal() -> int:
            with files.or_error(_WHAT, _WAY_OUT), ExitStack() as opened:
                place = Path(path)
                ownership.own(place, os.geteuid())
                descriptor = raw_disks.open_disk(place, opened)
                if is_open_to_write(descriptor):
                    raise StorageError(
                        f"{place.name} can still be written to by a machine",
                        reason="LayerHeld",
                        resolution="stop the sandbox, and take the snapshot then",
                    )
                size = size_mib * _MIB
                if (
                    os.fstat(descriptor).st_size != size
                ):  # it was a machine's to make so
                    writing = raw_disks.open_disk(place, opened, os.O_RDWR)
                    os.ftruncate(writing, size)
                os.fsync(descriptor)
                return os.fstat(descriptor).st_blocks * 512

        return await self._threads.run(seal)

    async def prepare(self, volume_id: str, path: str, size_mib: int) -> None:
        place = self._layout.volume(volume_id)

        def create() -> None:
            _drop_back(place)
            with ExitStack() as opened:
                raw_disks.create(place.back_part, size_mib * _MIB, opened)

        def complete() -> None:
            place.back_part.rename(place.back)
            files.sync_directory(place.root)

        with files.or_error(_NOT_BACK, _WAY_OUT):
            await self._threads.run(create)
            await self._copy(Path(path), place.back_part)
            await self._threads.run(complete)

    async def put_back(self, volume_id: str) -> None:
        place = self._layout.volume(volume_id)

        def put() -> None:
            with files.or_error(_NOT_BACK), suppress(FileNotFoundError):
                place.back.rename(place.disk)
                files.sync_directory(place.root)

        await self._threads.run(put)

    async def drop_back(self, volume_id: str) -> None:
        place = self._layout.volume(volume_id)

        def drop() -> None:
            with files.or_error("what a volume was to be cannot be removed"):
                _drop_back(place)

        await self._threads.run(drop)

    async def content(self, path: str) -> AsyncIterator[Piece]:
        run = self._threads.run
        with files.or_error("a volume's copy cannot be read"), ExitStack() as opened:
            source = await run(raw_disks.open_disk, Path(path), opened)
            parts = raw_disks.parts(source)
            while (piece := await run(next, parts, None)) is not None:
                yield piece


def _drop_back(place: VolumeFiles) -> None:
    for left in (place.back_part, place.back):
        left.unlink(missing_ok=True)


def _check_room(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < FREE_KEPT:
        raise Exhausted(
            f"only {free // _MIB} MiB are free for copies of volumes",
            reason="DiskFull",
            resolution=f"{_WAY_OUT}, or remove snapshots",
        )
