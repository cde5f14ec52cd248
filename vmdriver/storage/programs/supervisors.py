"""Read-only disks with the supervisor that guests run, made once for each content."""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from vmdriver.errors import Refused, StorageError
from vmdriver.host import process
from vmdriver.host.confined.box import Box, Limits
from vmdriver.host.confined.user_namespace import UserNamespace, give
from vmdriver.host.shared import Shared
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.storage import files
from vmdriver.storage.layout import Layout
from vmdriver.storage.programs.loader import self_contained
from vmdriver.storage.programs.program_bundle import Bundle, bundle_of

_log = logging.getLogger(__name__)
PROGRAM = "openshell-sandbox"
_IN_GUEST = "/opt/openshell/bin/lib"
"""Where the guest sees the bundle's loader and libraries."""
_YOUNG_S = 3600.0
_CONFIGURATION = Path("/etc/mke2fs.conf")
_LIMITS = Limits(cpu_s=120, file_size=16 * 2**30)
_Identity = tuple[int, int, int]


class SupervisorDisks:
    """Implements lifecycle.ports.host.SupervisorDisks."""

    def __init__(
        self, layout: Layout, threads: Threads, *, numbers: UserNamespace
    ) -> None:
        self._layout, self._threads, self._numbers = layout, threads, numbers
        self._known: dict[tuple[Path, _Identity], Path] = {}
        self._handed_out: dict[Path, float] = {}
        """When a launch of this driver got that disk last, by a clock that does not jump."""
        self._making = asyncio.Lock()
        """Held while a disk is made: who wants the same one waits for it. One lock for all
        contents, since a driver has one supervisor, or two around an upgrade.
        """
        self._taking = Shared()
        """Who finds a disk to be there and marks it as used is among others; alone, who removes one
        that he finds unused.
        """

    async def disk(self, program: Path, root: Path = Path("/")) -> Path:
        """A read-only ext4 disk with the program, and with its loader and libraries from `root`
        where it needs any: it runs in guests of every libc, and of none. Refused.
        """
        key = (program, await self._threads.run(_identity, program))
        known = self._known.get(key)
        if known is None or not await self._take(known):
            async with self._making:
                known = await self._found_or_made(program, root)
            self._known[key] = known
        return known

    async def open(self) -> None:
        """Remove what was under way when the last process ended. Before anything is made."""

        def remove() -> None:
            for path in self._layout.supervisors.glob(".*"):
                self._layout.clearing.remove(path)

        await self._threads.run(remove)

    async def collect(self, in_use: set[str]) -> list[str]:
        """Remove disks that no sandbox has and no launch has used for an hour; their paths."""

        def unlink_unused(path: Path) -> bool:
            since = time.monotonic() - self._handed_out.get(path, -math.inf)
            young = since < _YOUNG_S or time.time() - _used(path) < _YOUNG_S
            if str(path) in in_use or young:
                return False
            self._layout.clearing.remove(path)
            self._layout.clearing.remove(path.with_suffix(".used"))
            return True

        def disks() -> list[Path]:
            found = self._layout.supervisors.glob("[!.]*.img")
            return [path for path in found if path.is_file()]

        gone = []
        for path in await self._threads.run(disks):
            async with self._taking.alone():
                if await self._threads.run(unlink_unused, path):
                    gone.append(str(path))
        return gone

    async def _take(self, disk: Path) -> bool:
        """Mark a disk as used. False when it is not there."""

        def take() -> bool:
            if not disk.is_file():
                return False
            # Beside the disk: templates and checkpoints know the disk itself by its times.
            disk.with_suffix(".used").touch()
            self._handed_out[disk] = time.monotonic()
            return True

        async with self._taking.among():
            return await self._threads.run(take)

    async def _found_or_made(self, program: Path, root: Path) -> Path:
        bundle = await bundle_of(program, root, await self._numbers.root())
        disk = self._place(await self._threads.run(bundle.digest))
        if await self._take(disk):
            return disk
        disk = await self._make(bundle)
        if not await self._take(disk):
            raise StorageError(f"the supervisor's disk {disk.name} has vanished")
        return disk

    def _place(self, digest: str) -> Path:
        return self._layout.supervisors / f"{digest[:32]}.img"

    async def _make(self, bundle: Bundle) -> Path:
        """In a directory that nobody else has; what is seen is whole. Cancellable."""
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=self._layout.supervisors))
        try:
            tree, made = work / "tree", work / "made"
            copies = await self._threads.run(_lay_out, bundle, tree)
            # Of what is on the disk: the sources may have changed since they were looked at.
            disk = self._place(await self._threads.run(copies.digest))
            if copies.interpreter is not None:
                await self._threads.run(_confine, copies.interpreter)
            # From here on the programs in boxes may write there, and root does not.
            await self._threads.run(_give_all, tree, made)
            root = await self._numbers.root()
            box = Box(root, write=(tree,), limits=_LIMITS)
            for command in _patches(copies):
                await process.run(command, deadline_s=60, box=box)
            words = await self._threads.run(_mke2fs, tree, made / "disk")
            box = Box(root, (tree,), (made,), (_CONFIGURATION,), limits=_LIMITS)
            await process.run(words, deadline_s=120, box=box)
            await self._threads.run(self._publish, made / "disk", disk)
        finally:
            await self._threads.run(_clear, work)
        return disk

    def _publish(self, part: Path, disk: Path) -> None:
        files.give(part, Ownership(0, 0), 0o400)  # until a machine is let in
        files.sync_file(part)
        self._layout.clearing.make_way_for_file(disk)
        part.rename(disk)
        files.sync_directory(disk.parent)


def _clear(work: Path) -> None:
    try:
        files.remove_tree(work)
    except OSError as error:  # the next driver removes it
        _log.warning("%s cannot be removed now: %s", work, error)


def _patches(copies: Bundle) -> Iterator[list[str]]:
    """Commands that tell the program, and nobody else, where its loader and libraries are."""
    if copies.interpreter is None:
        return
    loader = f"{_IN_GUEST}/{copies.interpreter.name}"
    paths = ["--force-rpath", "--set-rpath", _IN_GUEST]
    yield ["patchelf", "--set-interpreter", loader, *paths, str(copies.program)]
    if copies.libraries:  # else their own paths lead into the image
        yield [
            *("patchelf", "--remove-rpath"),
            *(str(path) for _, path in copies.libraries),
        ]


def _give_all(tree: Path, made: Path) -> None:
    """What the programs in boxes may write. The tree is of folders and copies of ours."""
    made.mkdir()
    give(made, tree, *tree.rglob("*"))


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


def _lay_out(bundle: Bundle, tree: Path) -> Bundle:
    """Copies of everything, as they are on the disk."""
    _make_directory(tree)
    program = _copy(bundle.program, tree / PROGRAM)
    if bundle.interpreter is None:
        return Bundle(program)
    lib = tree / "lib"
    _make_directory(lib)
    return Bundle(
        program,
        _copy(bundle.interpreter, lib / bundle.interpreter.name),
        tuple((name, _copy(path, lib / name)) for name, path in bundle.libraries),
    )


def _confine(loader: Path) -> None:
    """It finds the program's libraries beside it, and none of the image's. Refused."""
    confined = self_contained(loader.read_bytes())
    if confined is None:
        raise Refused(
            f"the supervisor's loader {loader.name} cannot be kept from loading what an image says",
            detail="it has none of the paths that glibc's and musl's look at",
            reason="SupervisorUnfit",
            resolution="use a static build, or one for glibc or musl",
        )
    loader.write_bytes(confined)


def _make_directory(path: Path) -> None:
    path.mkdir(mode=0o755)
    path.chmod(0o755)


def _copy(source: Path, target: Path) -> Path:
    shutil.copyfile(source, target)
    target.chmod(0o755)
    return target
