"""Volumes: implements lifecycle.ports.volumes.VolumeStore in the state directory.

A volume is a folder with its note and its disk, a sparse raw file. It comes to be by a rename, and
goes by one: what a driver that was killed has left lies under a name that begins with a dot. An
empty file system is made by mke2fs in a box, on a file that no guest has written to; afterwards
nothing here reads a disk but to copy it.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from pydantic import ValidationError

from vmdriver.errors import AlreadyExists, Exhausted, StorageError
from vmdriver.host import process
from vmdriver.host.confined.box import Box, Limits
from vmdriver.host.confined.user_namespace import UserNamespace, give
from vmdriver.host.plain_file import is_open_to_write, open_plain
from vmdriver.host.threads import Threads
from vmdriver.host.users import ownership
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.mistakes import first_mistake
from vmdriver.model.plan import MachineUser
from vmdriver.model.volume import Volume
from vmdriver.storage import files, raw_disks
from vmdriver.storage.layout import Layout, VolumeFiles

_log = logging.getLogger(__name__)
_MIB = 2**20
_CONFIGURATION = Path("/etc/mke2fs.conf")
_OPTIONS = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
_LIMITS = Limits(cpu_s=60, file_size=2**47)
_WAY_OUT = "free space in the state directory"


class Volumes:
    """Of one driver. Nobody makes or changes one twice at a time: whoever asks sees to that."""

    def __init__(
        self,
        layout: Layout,
        threads: Threads,
        *,
        numbers: UserNamespace,
        free_kept: int = 256 * _MIB,
    ) -> None:
        """`free_kept`: bytes that making one leaves on the disk."""
        self._layout, self._threads, self._numbers = layout, threads, numbers
        self._free_kept = free_kept

    async def load_all(self) -> tuple[list[Volume], Mapping[str, str]]:
        return await self._threads.run(self._load_all)

    def _load_all(self) -> tuple[list[Volume], Mapping[str, str]]:
        found, problems = list[Volume](), dict[str, str]()
        if not self._layout.volumes.is_dir():  # no driver has run there yet
            return found, problems
        for folder in sorted(self._layout.volumes.iterdir()):
            if folder.name.startswith("."):
                continue
            try:
                found.append(_read(VolumeFiles(folder)))
            except (OSError, ValueError) as error:
                problems[folder.name] = _said(error)
        return found, problems

    async def tidy(self) -> None:
        def tidy() -> None:
            for left in self._layout.volumes.glob(".*"):
                self._layout.clearing.remove(left)

        await self._threads.run(tidy)

    # --- it comes to be

    def _beside(self, volume: Volume) -> VolumeFiles:
        return VolumeFiles(self._layout.volumes / f".part-{volume.id}")

    async def make(self, volume: Volume) -> None:
        part = self._beside(volume)
        await self._threads.run(self._begin, part)
        await self._threads.run(give, part.root)
        box = Box(
            await self._numbers.root(),
            (),
            (part.root,),
            (_CONFIGURATION,),
            limits=_LIMITS,
        )
        command = [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-E", _OPTIONS),
            *("-L", volume.name[:16], str(part.disk), f"{volume.size_mib}M"),
        ]
        await process.run(command, deadline_s=60, box=box)
        await self._threads.run(_take_over, part)

    def _begin(self, part: VolumeFiles) -> None:
        with files.or_error("a volume cannot be made", _WAY_OUT):
            self._check_room()
            files.remove_tree(part.root)
            part.root.mkdir(mode=0o711)

    def _check_room(self) -> None:
        free = shutil.disk_usage(self._layout.volumes).free
        if free < self._free_kept:
            raise Exhausted(
                f"only {free // _MIB} MiB are free for volumes",
                reason="DiskFull",
                resolution=f"{_WAY_OUT}, or remove volumes",
            )

    async def receive(self, volume: Volume, pieces: AsyncIterator[Piece]) -> None:
        part, size = self._beside(volume), volume.size_mib * _MIB
        await self._threads.run(self._begin, part)
        with ExitStack() as opened:
            run = self._threads.run
            with files.or_error("a volume cannot be made", _WAY_OUT):
                descriptor = await run(raw_disks.create, part.disk, size, opened)
            async for piece in pieces:
                if not 0 <= piece.offset <= size - len(piece.data):
                    raise StorageError(
                        f"a piece of {volume.shown!r} is outside of its disk"
                    )
                await run(self._write, descriptor, piece)

    def _write(self, descriptor: int, piece: Piece) -> None:
        self._check_room()
        with files.or_error("a volume cannot be written", _WAY_OUT):
            files.write_all(descriptor, piece.data, piece.offset)

    async def publish(self, volume: Volume) -> None:
        await self._threads.run(self._publish, volume)

    def _publish(self, volume: Volume) -> None:
        part, place = self._beside(volume), self._layout.volume(volume.id)
        with files.or_error(f"volume {volume.shown!r} cannot be made", _WAY_OUT):
            part.root.chmod(0o711)  # its machine passes, and lists nothing
            files.give(part.disk, Ownership(os.geteuid(), os.getegid()), 0o600)
            files.sync_file(part.disk)
            files.write_new(part.note, volume.model_dump_json().encode())
            files.sync_directory(part.root)
            if os.path.lexists(place.root):
                raise AlreadyExists(
                    f"volume {volume.shown!r} exists", reason="VolumeExists"
                )
            part.root.rename(place.root)
            try:
                files.sync_directory(self._layout.volumes)
            except OSError:
                # Nobody is told of it: it would come to be at the next start.
                place.root.rename(part.root)
                raise

    async def discard(self, volume: Volume) -> None:
        await self._threads.run(self._layout.clearing.remove, self._beside(volume).root)

    # --- it changes

    async def note(self, volume: Volume) -> None:
        def note() -> None:
            with files.or_error(f"volume {volume.shown!r} cannot be noted", _WAY_OUT):
                place = self._layout.volume(volume.id).note
                files.replace(place, volume.model_dump_json().encode())

        await self._threads.run(note)

    async def grow(self, volume: Volume) -> None:
        await self._threads.run(self._grow, volume)

    def _grow(self, volume: Volume) -> None:
        with files.or_error(f"volume {volume.shown!r} cannot be made larger", _WAY_OUT):
            descriptor = open_plain(self._layout.volume(volume.id).disk, os.O_RDWR)
            try:
                if os.fstat(descriptor).st_size < volume.size_mib * _MIB:
                    os.ftruncate(descriptor, volume.size_mib * _MIB)
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

    async def remove(self, volume_id: str) -> None:
        await self._threads.run(self._remove, volume_id)

    def _remove(self, volume_id: str) -> None:
        gone = self._layout.volumes / f".gone-{volume_id}"
        with files.or_error("the volume cannot be removed"):
            files.remove_tree(gone)
            with suppress(FileNotFoundError):
                self._layout.volume(volume_id).root.rename(gone)
            files.sync_directory(self._layout.volumes)
            files.remove_tree(gone)

    # --- whose it is

    async def let_in(
        self, volume: Volume, user: MachineUser | None, *, read_only: bool
    ) -> None:
        await self._threads.run(self._let_in, volume, user, read_only)

    def _let_in(
        self, volume: Volume, user: MachineUser | None, read_only: bool
    ) -> None:
        if user is None:
            raise StorageError("a machine without a user of its own has no volumes")
        path = self._layout.volume(volume.id).disk
        with files.or_error(f"volume {volume.shown!r} cannot be given to its machine"):
            descriptor = open_plain(path)
            try:
                held = is_open_to_write(descriptor)
            finally:
                os.close(descriptor)
            if held:
                raise StorageError(
                    f"volume {volume.shown!r} can still be written to by a machine",
                    reason="VolumeHeld",
                    resolution="look for a QEMU that should have ended; start the sandbox again "
                    "when it has",
                )
            self._grow(volume)
            if read_only:
                ownership.take(path, {user.uid})
            else:
                ownership.own(path, user.uid)

    async def take_back(self, volume_id: str, user_id: int | None) -> None:
        def take() -> None:
            path = self._layout.volume(volume_id).disk
            if user_id is not None:
                with files.or_error("a volume cannot be taken back from its machine"):
                    ownership.disown(path, user_id)

        await self._threads.run(take)

    # --- what is on it

    async def content(self, volume: Volume) -> AsyncIterator[Piece]:
        path = self._layout.volume(volume.id).disk
        what = f"volume {volume.shown!r} cannot be read"
        with files.or_error(what), ExitStack() as opened:
            run = self._threads.run
            parts = raw_disks.parts(await run(raw_disks.open_disk, path, opened))
            while (piece := await run(next, parts, None)) is not None:
                yield piece

    async def stored_bytes(self, volume_id: str) -> int:
        def look() -> int:
            with suppress(OSError):
                return self._layout.volume(volume_id).disk.lstat().st_blocks * 512
            return 0

        return await self._threads.run(look)


def _read(place: VolumeFiles) -> Volume:
    """OSError, ValueError."""
    volume = Volume.model_validate_json(files.read(place.note))
    if volume.id != place.root.name:
        raise ValueError(f"it says that it is {volume.shown!r}")
    if not place.disk.is_file() or place.disk.is_symlink():
        raise ValueError("its disk is missing")
    return volume


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        where, what = first_mistake(error)
        return f"volume.json: {where}: {what}"
    if isinstance(error, OSError):
        return f"volume.json: {error.strerror}"
    return str(error)


def _take_over(part: VolumeFiles) -> None:
    """From whoever has made the file system. Nothing of it is followed."""
    with files.or_error("a volume cannot be made", _WAY_OUT):
        os.chown(part.root, os.geteuid(), os.getegid(), follow_symlinks=False)
        files.give(part.disk, Ownership(os.geteuid(), os.getegid()), 0o600)
