"""The disks and files of a machine. Every remove is fine with what is already gone."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from vmdriver.errors import Exhausted, StorageError
from vmdriver.host import console_file, process
from vmdriver.host.plain_file import is_open_to_write, open_plain
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import GuestReport, Ownership
from vmdriver.model.plan import Disk, MachineUser
from vmdriver.storage import files
from vmdriver.storage.layers import chains, merging, qcow2
from vmdriver.storage.layers.possession import Possession
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes.guest_report import read_report

_log = logging.getLogger(__name__)
_FREE_SPACE_KEPT = 256 * 1024 * 1024


class DiskStore:
    """Implements lifecycle.ports.host.Disks. `owner`: of what has no machine's user."""

    def __init__(self, layout: Layout, threads: Threads, owner: Ownership) -> None:
        self._layout, self._threads, self._owner = layout, threads, owner
        self._possession = Possession(layout, owner)

    async def create_overlay(self, disk: Disk, user: MachineUser | None) -> None:
        """Make the root disk's qcow2 layer, empty, on its base, unless a machine may have
        written to it: whoever asks may have lost the note that it was made. StorageError when
        such a one is not what is wanted.
        """
        path = Path(disk.path)
        if not disk.backing:
            raise StorageError(f"disk {path.name} has no base")
        below = Path(disk.backing[0])
        if not await self._threads.run(chains.may_be_made, path, below):
            _log.warning("layer %s is there and was used: it is kept", path.name)
            await self._threads.run(self._possession.give, path, user)
            return
        self._check_free_space(self._layout.layers)
        await self._threads.run(self._make_layer, path, disk, user)

    def _make_layer(self, path: Path, disk: Disk, user: MachineUser | None) -> None:
        with files.or_error(
            f"layer {path.name} cannot be made", "free space in the state directory"
        ):
            content = _blank(disk)
            self._possession.open_folder(path.parent, user)
            files.write_new(path, b"", 0o600, sync=False)
            with os.fdopen(open_plain(path, os.O_RDWR), "r+b", buffering=0) as file:
                file.truncate(content.size)
                for offset, data in content.parts:
                    files.write_all(file.fileno(), data, offset)
            self._possession.give(path, user)

    async def is_whole(self, layer: str, below: str) -> bool:
        return await self._threads.run(chains.is_whole, Path(layer), Path(below))

    async def sync_layer(self, path: str) -> None:
        def sync() -> None:
            with files.or_error(f"layer {Path(path).name} cannot be made durable"):
                files.sync_file(Path(path))
                files.sync_directory(Path(path).parent)

        await self._threads.run(sync)

    async def layers(self, sandbox_id: str = "") -> list[str]:
        found = await self._threads.run(chains.all_files, self._layout.layers)
        mine = chains.named_for(sandbox_id) if sandbox_id else None
        return [
            str(path)
            for path in found
            if (mine is None or mine.fullmatch(path.name)) and path.is_file()
        ]

    async def own_layers(self, sandbox_id: str) -> Mapping[str, tuple[str, ...]]:
        return await self._threads.run(
            chains.own_layers, self._layout.layers, sandbox_id
        )

    async def check_layers(self, disk: Disk) -> None:
        await self._threads.run(chains.check, disk.path, disk.backing)

    async def merge_layer(self, disk: Disk, user: MachineUser | None) -> None:
        await self.check_layers(disk)
        below = Path(disk.backing[0])
        await self._threads.run(self._possession.give, below, user)
        box = merging.box(disk, self._owner if user is None else user)
        await process.run(merging.command(disk), deadline_s=600, box=box)

    async def free_bytes(self, path: str) -> int:
        def ask() -> int:
            return shutil.disk_usage(Path(path).parent).free

        return await self._threads.run(ask)

    async def freeze_layer(self, path: str, user: MachineUser | None) -> int:
        """Take the right to write away, and make the content durable. StorageError also where a
        machine has it open for writing still: others may come to stand on it.
        """

        def freeze() -> int:
            with files.or_error(f"layer {Path(path).name} cannot be frozen"):
                self._possession.freeze(Path(path), user)
                return _unwritten(Path(path))

        return await self._threads.run(freeze)

    async def share_layer(self, path: str, user: MachineUser | None) -> None:
        def share() -> None:
            self._possession.share(Path(path), user)
            files.sync_file(Path(path))

        with files.or_error(f"layer {Path(path).name} cannot be shared"):
            await self._threads.run(share)

    async def flush_status(self, path: str) -> None:
        await self._threads.run(files.sync_file, Path(path))

    @staticmethod
    def _check_free_space(directory: Path) -> None:
        free = shutil.disk_usage(directory).free
        if free < _FREE_SPACE_KEPT:
            raise Exhausted(
                f"only {free // 2**20} MiB are free for sandbox disks",
                reason="DiskFull",
                resolution="free space in the state directory, or delete sandboxes",
            )

    async def remove(self, path: str) -> None:
        """Remove one file below the state directory."""
        target = Path(path)
        if not target.is_relative_to(self._layout.root):
            raise StorageError(f"{path} is not ours to remove")
        await self._threads.run(self._remove, target)

    def _remove(self, target: Path) -> None:
        try:
            target.unlink(missing_ok=True)
            self._possession.leave_folder(target.parent)
        except OSError as error:
            why = f"it cannot be removed ({error.strerror})"
            if not self._layout.clearing.displace(target, why):
                raise StorageError(
                    f"{target.name} cannot be removed: {error.strerror}",
                    detail=str(error),
                ) from error

    async def report(self, path: str) -> GuestReport:
        """What the guest said last on its status disk; nothing if there is none."""
        return await self._threads.run(read_report, path)

    def report_now(self, path: str) -> GuestReport:
        """The same without a thread: 4 KiB from the page cache, for the poll while a
        machine boots.
        """
        return read_report(path)

    async def console_tail(self, path: str, size: int = 2000) -> str:
        return await self._threads.run(console_file.tail, Path(path), size)

    async def bound_console(self, path: str) -> None:
        await self._threads.run(console_file.cut, Path(path))

    async def extension_directory(self, sandbox_id: str, name: str) -> Path:
        path = self._layout.sandbox(sandbox_id).extension(name)
        await self._threads.run(
            lambda: path.mkdir(mode=0o700, parents=True, exist_ok=True)
        )
        return path


def _unwritten(layer: Path) -> int:
    """Make it durable; the bytes that it occupies."""
    descriptor = open_plain(layer)
    try:
        if is_open_to_write(descriptor):
            raise StorageError(
                f"layer {layer.name} can still be written to by a machine",
                reason="LayerHeld",
                resolution="stop the sandbox, and take a snapshot of its disk then",
            )
        os.fsync(descriptor)
        return os.fstat(descriptor).st_blocks * 512
    finally:
        os.close(descriptor)


def _blank(disk: Disk) -> qcow2.Blank:
    """Of the size that is wanted, or of what it stands on if that is larger. StorageError."""
    below, wanted = disk.backing[0], disk.size_mib * 2**20
    kind: qcow2.Format = "raw" if len(disk.backing) == 1 else "qcow2"
    present = (
        chains.check(below, disk.backing[1:])
        if kind == "qcow2"
        else Path(below).stat().st_size
    )
    try:
        return qcow2.blank(max(wanted, present), below, kind)
    except ValueError as error:
        name = f"layer {Path(disk.path).name} cannot be made"
        raise StorageError(f"{name}: {error}", detail=below) from error
