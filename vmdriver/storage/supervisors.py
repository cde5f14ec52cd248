"""Read-only disks with the supervisor that guests run, made once for each content."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

from vmdriver.errors import Refused
from vmdriver.host import process
from vmdriver.host.threads import Pool
from vmdriver.storage import files
from vmdriver.storage.layout import Layout
from vmdriver.storage.program_bundle import Bundle, bundle_of

PROGRAM = "openshell-sandbox"
_IN_GUEST = "/opt/openshell/bin/lib"
"""Where the guest sees the bundle's loader and libraries."""
_YOUNG_S = 3600.0
_Identity = tuple[int, int, int]


class SupervisorDisks:
    """A part of lifecycle.ports.Disks."""

    _layout: Layout
    _pool: Pool
    _known_supervisors: dict[tuple[Path, _Identity], Path]

    async def supervisor_disk(self, program: Path, root: Path = Path("/")) -> Path:
        """A read-only ext4 disk with the program, and with its loader and libraries from `root`
        where it needs any: it runs in guests of every libc, and of none. Refused.
        """
        key = (program, await self._pool.run(_identity, program))
        known = self._known_supervisors.get(key)
        if known is None or not known.exists():
            bundle = await bundle_of(program, root)
            digest = await self._pool.run(bundle.digest)
            known = self._layout.supervisors / f"{digest[:32]}.img"
            if not known.exists():
                await self._make(bundle, known)
            self._known_supervisors[key] = known
        # Beside the disk: templates and memory images know the disk itself by its times, too.
        await self._pool.run(known.with_suffix(".used").touch)
        return known

    async def collect_supervisors(self, in_use: set[str]) -> list[str]:
        """Remove disks that no sandbox has and no launch has used for an hour; their paths."""

        def collect() -> list[str]:
            gone = []
            for path in self._layout.supervisors.glob("[!.]*.img"):
                young = time.time() - _used(path) < _YOUNG_S
                if str(path) not in in_use and not young:
                    path.unlink()
                    path.with_suffix(".used").unlink(missing_ok=True)
                    gone.append(str(path))
            return gone

        return await self._pool.run(collect)

    async def _make(self, bundle: Bundle, disk: Path) -> None:
        part = disk.with_name(
            f".{disk.name}.{os.getpid()}.{id(asyncio.current_task())}"
        )
        tree = part.with_suffix(".tree")
        try:
            await self._pool.run(_lay_out, bundle, tree)
            if bundle.interpreter is not None:
                loader = f"{_IN_GUEST}/{bundle.interpreter.name}"
                paths = ["--force-rpath", "--set-rpath", _IN_GUEST]
                command = ["patchelf", "--set-interpreter", loader, *paths]
                await process.run([*command, str(tree / PROGRAM)], deadline_s=60)
            await process.run(_mke2fs(tree, part), deadline_s=120)
            part.chmod(0o444)
            part.rename(disk)
        finally:
            await self._pool.run(files.remove_tree, tree)
            part.unlink(missing_ok=True)


def _used(disk: Path) -> float:
    """When a launch asked for it last, seconds since 1970."""
    mark = disk.with_suffix(".used")
    return (mark if mark.exists() else disk).stat().st_mtime


def _mke2fs(tree: Path, disk: Path) -> list[str]:
    content = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
    size_mib = content // 2**20 * 5 // 4 + 4
    options = ["-O", "^has_journal", "-m", "0", "-E", "root_owner=0:0"]
    program = ["mke2fs", "-q", "-F", "-t", "ext4", *options]
    return [*program, "-d", str(tree), str(disk), f"{size_mib}M"]


def _identity(program: Path) -> _Identity:
    try:
        found = program.stat()
    except OSError as error:
        raise Refused(
            f"the supervisor {program} cannot be read: {error.strerror}",
            reason="SupervisorMissing",
            resolution="set supervisor_path to the openshell-sandbox program, or "
            "supervisor_image to an image that has it",
        ) from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _lay_out(bundle: Bundle, tree: Path) -> None:
    tree.mkdir(mode=0o755)
    tree.chmod(0o755)
    _copy(bundle.program, tree / PROGRAM)
    if bundle.interpreter is None:
        return
    (tree / "lib").mkdir(mode=0o755)
    (tree / "lib").chmod(0o755)
    _copy(bundle.interpreter, tree / "lib" / bundle.interpreter.name)
    for name, path in bundle.libraries:
        _copy(path, tree / "lib" / name)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(0o755)
