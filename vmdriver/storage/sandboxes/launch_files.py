"""What a machine is given and what it says: seed, status disk and console of a launch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from vmdriver.errors import Refused
from vmdriver.host.plain_file import open_plain
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import LaunchPlan
from vmdriver.storage import files
from vmdriver.storage.layers.possession import Possession
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes import seed
from vmdriver.storage.sandboxes.guest_report import read_report

_STATUS_BYTES = 64 * 1024
_NOT_WRITTEN = "launch files cannot be written"


class LaunchFiles:
    """Implements lifecycle.ports.host.LaunchFiles. `owner`: of machines without their own user."""

    def __init__(self, layout: Layout, threads: Threads, owner: Ownership) -> None:
        self._layout = layout
        self._threads = threads
        self._possession = Possession(layout, owner)

    async def write(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        data = seed.build(plan, environment, seed.Secrets(secrets))
        await self._threads.run(self._write, plan, data)

    async def take_over(
        self,
        waiting: LaunchPlan,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        data = seed.build(plan, environment, seed.Secrets(secrets))
        await self._threads.run(self._take_over, waiting, plan, data)

    def _take_over(self, waiting: LaunchPlan, plan: LaunchPlan, data: bytes) -> None:
        with files.or_error(_NOT_WRITTEN):
            self._possession.let_in(plan)
            known = Path(waiting.disk("seed").path)
            # Into the same file: QEMU has it open.
            with os.fdopen(open_plain(known, os.O_RDWR), "r+b") as file:
                if seed.disk_bytes(len(data)) > os.fstat(file.fileno()).st_size:
                    raise Refused("the seed is larger than a waiting machine can see")
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
        def remove() -> None:
            for directory in list(Path(parent).iterdir()):
                if directory.name not in keep and not _is_taken(directory):
                    self._layout.clearing.remove(directory)

        await self._threads.run(remove)

    async def write_for_template(self, plan: LaunchPlan) -> None:
        data = seed.build_barrier(plan)
        await self._threads.run(self._write, plan, data)

    def _write(self, plan: LaunchPlan, data: bytes) -> None:
        with files.or_error(_NOT_WRITTEN):
            self._possession.let_in(plan)
            self._write_seed(plan, data, seed.disk_bytes(len(data)))
            for path, content in (
                (Path(plan.disk("status").path), b"\0" * _STATUS_BYTES),
                (Path(plan.console), b""),
            ):
                files.write_new(path, content, 0o600, sync=False)
                self._possession.give(path, plan.user)

    async def write_for_resume(
        self,
        plan: LaunchPlan,
        environment: Mapping[str, str],
        secrets: Mapping[str, bytes],
    ) -> None:
        data = seed.build(plan, environment, seed.Secrets(secrets))

        def write() -> None:
            with files.or_error(_NOT_WRITTEN):
                self._possession.let_in(plan)
                self._write_seed(plan, data, seed.disk_bytes(len(data)))
                status = Path(plan.disk("status").path)
                if read_report(str(status)).phase != "started":
                    record = b"phase=started\n".ljust(_STATUS_BYTES, b"\0")
                    files.write_new(status, record, sync=False)
                for path in (status, Path(plan.console)):
                    if path.exists():
                        self._possession.give(path, plan.user)

        await self._threads.run(write)

    def _write_seed(self, plan: LaunchPlan, data: bytes, size: int) -> None:
        path = Path(plan.disk("seed").path)
        files.write_new(path, data, 0o600, sync=False)
        os.truncate(path, size)
        self._possession.give(path, plan.user, 0o400)


def _is_taken(directory: Path) -> bool:
    """Whether a sandbox has taken files over from there: links to them are left."""
    if not directory.is_dir() or directory.is_symlink():
        return False
    return any(p.is_symlink() and p.exists() for p in directory.iterdir())
