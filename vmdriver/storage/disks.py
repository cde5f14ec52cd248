"""The disks and files of a machine. Every remove is fine with what is already gone."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vmdriver.errors import Exhausted, Refused, StorageError
from vmdriver.host import process
from vmdriver.host.threads import Pool
from vmdriver.lifecycle.ports import GuestReport, Ownership
from vmdriver.model.plan import Disk, LaunchPlan
from vmdriver.storage import files, seed
from vmdriver.storage.layout import Layout

_log = logging.getLogger(__name__)
_STATUS_BYTES = 64 * 1024
_RECORD_BYTES = 4096
_CONSOLE_LIMIT = 1024 * 1024
_CONSOLE_KEPT = 256 * 1024
_FREE_SPACE_KEPT = 256 * 1024 * 1024
# Sub-clusters: a small write allocates 2 KiB, not 64 KiB, and does not copy from the
# base (see DECISIONS.md).
_OVERLAY_OPTIONS = "extended_l2=on,cluster_size=64k"


def parse_report(data: bytes) -> GuestReport:
    """Read a status record; whatever the guest wrote, the answer is a report."""
    text = data[:_RECORD_BYTES].rstrip(b"\0").decode("utf-8", errors="replace")
    fields = dict(
        line.split("=", 1)
        for line in text.splitlines()
        if "=" in line and " " not in line.split("=")[0]
    )
    stamps: dict[str, float] = {}
    for word in text.split():
        name, _, value = word.partition("=")
        if (
            name in {"init", "modules", "supervisor"}
            and value.replace(".", "", 1).isdigit()
        ):
            stamps[name] = float(value)
    phase = fields.get("phase", "")
    code = fields.get("code", "")
    return GuestReport(
        phase=phase
        if phase in {"waiting", "started", "exited", "failed", "probed"}
        else "",
        exit_code=int(code) if code.isdigit() and len(code) < 4 else None,
        reason="".join(c if c.isprintable() else "?" for c in fields.get("reason", ""))[
            :500
        ],
        stamps=stamps,
    )


class DiskStore:
    """Implements lifecycle.ports.Disks. `owner` is the user that QEMU runs as."""

    def __init__(self, layout: Layout, pool: Pool, owner: Ownership) -> None:
        self._layout = layout
        self._pool = pool
        self._owner = owner

    def _give(self, path: Path, mode: int) -> None:
        path.chmod(mode)
        os.chown(path, self._owner.uid, self._owner.gid)

    async def create_overlay(self, disk: Disk) -> None:
        """Make the root disk's qcow2 layer, empty, on its base. An existing one is
        replaced.
        """
        path = Path(disk.path)
        if not disk.backing:
            raise StorageError(f"disk {path.name} has no base")
        self._check_free_space(path.parent)
        await self._pool.run(lambda: path.unlink(missing_ok=True))
        await process.run(
            [
                "qemu-img",
                "create",
                "-q",
                "-f",
                "qcow2",
                "-F",
                "raw" if len(disk.backing) == 1 else "qcow2",
                "-b",
                disk.backing[0],
                "-o",
                _OVERLAY_OPTIONS,
                str(path),
            ],
            deadline_s=60,
        )
        await self._pool.run(self._give, path, 0o600)

    async def layers(self) -> list[str]:
        """See ports.Disks."""
        found = await self._pool.run(lambda: list(self._layout.layers.glob("*.qcow2")))
        return [str(path) for path in found]

    async def merge_layer(self, layer: str, below: str) -> None:
        """Write a layer's content into the one below it, which takes its place."""
        await self._pool.run(self._give, Path(below), 0o600)
        # -d: the emptied layer would not be used again anyway.
        await process.run(
            ["qemu-img", "commit", "-q", "-d", "-f", "qcow2", "-b", below, layer],
            deadline_s=600,
        )

    async def freeze_layer(self, path: str) -> int:
        """Take the right to write away, and make the content durable."""

        def freeze() -> int:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fchmod(descriptor, 0o400)
                os.fsync(descriptor)
                return os.fstat(descriptor).st_blocks * 512
            finally:
                os.close(descriptor)

        return await self._pool.run(freeze)

    async def flush_status(self, path: str) -> None:
        """Make the status disk's content durable."""
        await self._pool.run(files.sync_file, Path(path))

    @staticmethod
    def _check_free_space(directory: Path) -> None:
        free = shutil.disk_usage(directory).free
        if free < _FREE_SPACE_KEPT:
            raise Exhausted(
                f"only {free // 2**20} MiB are free for sandbox disks",
                reason="DiskFull",
                resolution="free space in the state directory, or delete sandboxes",
            )

    async def write_launch_files(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        """Write the seed, an empty status disk and an empty console for one launch."""
        data = seed.build(plan, environment, seed.Secrets(secrets))
        await self._pool.run(self._write_launch_files, plan, data)

    async def take_over_files(
        self,
        waiting: LaunchPlan,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        """See ports.Disks."""
        data = seed.build(plan, environment, seed.Secrets(secrets))
        await self._pool.run(self._take_over_files, waiting, plan, data)

    @staticmethod
    def _take_over_files(waiting: LaunchPlan, plan: LaunchPlan, data: bytes) -> None:
        with _seed_errors():
            known = Path(waiting.disk("seed").path)
            if seed.disk_bytes(len(data)) > known.stat().st_size:
                raise Refused("the seed is larger than a waiting machine can see")
            # Into the same file: QEMU has it open.
            with known.open("r+b") as file:
                file.write(data)
            for old, new in (
                (waiting.console, plan.console),
                (waiting.disk("seed").path, plan.disk("seed").path),
                (waiting.disk("status").path, plan.disk("status").path),
            ):
                Path(old).rename(new)
                # QEMU opens its files again by name when it lets them go and takes them
                # back, as around a capture (measured, 7.2).
                Path(old).symlink_to(new)

    async def remove_abandoned(self, parent: str, keep: set[str]) -> None:
        """See ports.Disks."""
        await self._pool.run(_remove_abandoned, Path(parent), keep)

    async def write_barrier_files(self, plan: LaunchPlan) -> None:
        """The same for a template."""
        data = seed.build_barrier(plan)
        await self._pool.run(self._write_launch_files, plan, data)

    def _write_launch_files(self, plan: LaunchPlan, data: bytes) -> None:
        with _seed_errors():
            self._write_seed(plan, data, seed.disk_bytes(len(data)))
            for path, content in (
                (Path(plan.disk("status").path), b"\0" * _STATUS_BYTES),
                (Path(plan.console), b""),
            ):
                files.write_new(path, content, 0o600, sync=False)
                self._give(path, 0o600)

    async def write_resume_files(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        """See ports.Disks."""
        data = seed.build(plan, environment, seed.Secrets(secrets))

        def write() -> None:
            with _seed_errors():
                self._write_seed(plan, data, seed.disk_bytes(len(data)))
                status = Path(plan.disk("status").path)
                if self._report(str(status)).phase != "started":
                    record = b"phase=started\n".ljust(_STATUS_BYTES, b"\0")
                    files.write_new(status, record, sync=False)
                    self._give(status, 0o600)

        await self._pool.run(write)

    def _write_seed(self, plan: LaunchPlan, data: bytes, size: int) -> None:
        path = Path(plan.disk("seed").path)
        files.write_new(path, data, 0o600, sync=False)
        os.truncate(path, size)
        self._give(path, 0o400)

    async def remove(self, path: str) -> None:
        """Remove one file below the state directory."""
        target = Path(path)
        if not target.is_relative_to(self._layout.root):
            raise StorageError(f"{path} is not ours to remove")
        await self._pool.run(lambda: target.unlink(missing_ok=True))

    async def report(self, path: str) -> GuestReport:
        """What the guest said last on its status disk; nothing if there is none."""
        return await self._pool.run(self._report, path)

    @staticmethod
    def _report(path: str) -> GuestReport:
        try:
            with Path(path).open("rb") as file:
                return parse_report(file.read(_RECORD_BYTES))
        except FileNotFoundError:
            return GuestReport()

    def report_now(self, path: str) -> GuestReport:
        """The same without a thread: 4 KiB from the page cache, for the poll while a
        machine boots.
        """
        return self._report(path)

    async def console_tail(self, path: str, size: int = 2000) -> str:
        """The end of the console as printable text."""
        return await self._pool.run(console_tail, Path(path), size)

    async def bound_console(self, path: str) -> None:
        """Cut a console that has grown too long, keeping its end.

        QEMU has it open for appending, so that it goes on at the new end.
        """
        await self._pool.run(self._bound_console, Path(path))

    @staticmethod
    def _bound_console(path: Path) -> None:
        try:
            with path.open("rb+") as file:
                size = file.seek(0, os.SEEK_END)
                if size <= _CONSOLE_LIMIT:
                    return
                file.seek(size - _CONSOLE_KEPT)
                kept = file.read(_CONSOLE_KEPT)
                file.seek(0)
                file.truncate(0)
                file.write(b"[earlier output was cut]\n" + kept)
        except FileNotFoundError:
            return

    async def supervisor_disk(self, program: Path) -> Path:
        """A read-only ext4 disk with the operator's supervisor, made once per content."""
        digest = await self._pool.run(_file_digest, program)
        disk = self._layout.supervisors / f"{digest[:32]}.img"
        if not disk.exists():
            await self._make_supervisor_disk(program, disk)
        return disk

    async def _make_supervisor_disk(self, program: Path, disk: Path) -> None:
        part = disk.with_name(
            f".{disk.name}.{os.getpid()}.{id(asyncio.current_task())}"
        )
        tree = part.with_suffix(".tree")
        size_mib = program.stat().st_size // 2**20 * 5 // 4 + 4
        try:
            await self._pool.run(_copy_program, program, tree)
            await process.run(
                [
                    "mke2fs",
                    "-q",
                    "-F",
                    "-t",
                    "ext4",
                    "-O",
                    "^has_journal",
                    "-m",
                    "0",
                    "-E",
                    "root_owner=0:0",
                    "-d",
                    str(tree),
                    str(part),
                    f"{size_mib}M",
                ],
                deadline_s=120,
            )
            part.chmod(0o444)
            part.rename(disk)
        finally:
            await self._pool.run(files.remove_tree, tree)
            part.unlink(missing_ok=True)

    async def extension_directory(self, sandbox_id: str, name: str) -> Path:
        """An extension's private directory for that sandbox."""
        path = self._layout.sandbox(sandbox_id).extension(name)
        await self._pool.run(
            lambda: path.mkdir(mode=0o700, parents=True, exist_ok=True)
        )
        return path


def _remove_abandoned(parent: Path, keep: set[str]) -> None:
    for directory in list(parent.iterdir()):
        taken = any(p.is_symlink() and p.exists() for p in directory.iterdir())
        if directory.name not in keep and not taken:
            files.remove_tree(directory)


@contextmanager
def _seed_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"launch files cannot be written: {error.strerror}", detail=str(error)
        ) from error


def console_tail(path: Path, size: int = 2000) -> str:
    """The last `size` bytes of a console as text without control characters."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            text = file.read(size).decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "".join(c if c.isprintable() or c == "\n" else "" for c in text).strip()


def _file_digest(program: Path) -> str:
    try:
        with program.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refused(
            f"the supervisor {program} cannot be read: {error.strerror}",
            reason="SupervisorMissing",
            resolution="set supervisor_path to the openshell-sandbox program",
        ) from error


def _copy_program(program: Path, tree: Path) -> None:
    tree.mkdir(mode=0o755)
    tree.chmod(0o755)
    target = tree / "openshell-sandbox"
    shutil.copyfile(program, target)
    target.chmod(0o755)
