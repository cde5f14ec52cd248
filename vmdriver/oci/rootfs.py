"""From an image in an OCI layout to a base disk: scan, unpack, make the file system."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vmdriver.errors import Exhausted, ImageError, Refused
from vmdriver.host.confined.box import interpreter
from vmdriver.host.confined.user_namespace import give
from vmdriver.host.threads import Threads
from vmdriver.oci import files, scan
from vmdriver.oci.boxes import ImageBoxes
from vmdriver.oci.cache import Cache
from vmdriver.oci.fetched import IMAGE, FetchedLayout, LayerFile
from vmdriver.oci.policy import ImagePolicy
from vmdriver.oci.reference import FIELD
from vmdriver.oci.tools import Tools
from vmdriver.oci.zstd import Unzstd

_LOOK_S = 0.25
_MIB = 2**20
_JOURNAL_MIB = 16
_SPARE_MIB = 64
_BYTES_PER_INODE = 16384


def _make_place(place: Path) -> None:
    """A folder for a program that unpacks."""
    place.mkdir(mode=0o700)
    give(place)


class RootFs:
    """Works below a directory that its caller removes."""

    def __init__(
        self, cache: Cache, policy: ImagePolicy, threads: Threads, boxes: ImageBoxes
    ) -> None:
        self._cache, self._policy, self._threads = cache, policy, threads
        self._boxes = boxes
        self._tools = Tools(policy.build_deadline_s, threads)
        self._unzstd = Unzstd(policy, threads, boxes, self._tools)

    # --- unpack

    async def unpack(
        self, fetched: FetchedLayout, layers: list[LayerFile], place: Path
    ) -> tuple[Path, files.Tree]:
        """The layers, which are in the layout, on top of each other, as a tree below the new
        folder `place`; and what is in it. Refused for an image that is not fit, naming the layer;
        Exhausted when it fills the disk; ImageError.
        """
        target = place / "root"
        await self._threads.run(_make_place, place)
        watching = asyncio.ensure_future(self.watch_space())
        tasks: set[asyncio.Future[Any]] = {watching}
        try:
            plain = asyncio.ensure_future(
                self._unzstd.plain(fetched, layers, place.with_name("plain"))
            )
            tasks.add(plain)
            await self._first_error(plain, plain, watching)
            unpacking = asyncio.ensure_future(self._unpack(fetched.path, target))
            scanning = asyncio.ensure_future(self._scan(fetched.path, plain.result()))
            tasks |= {unpacking, scanning}
            await self._first_error(unpacking, scanning, watching)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        try:
            found = await self._threads.run(files.tidy, target, scanning.result())
        except OSError as error:
            raise ImageError(
                f"the image cannot be turned into a disk: {error}", detail=str(target)
            ) from error
        self._check(found)
        return target, found

    def _check(self, found: files.Tree) -> None:
        """Whatever the scan saw. Refused."""
        most = self._policy.max_content + 2 * found.files * files.BLOCK
        if found.files > self._policy.max_files or found.content > most:
            raise Refused(
                f"{FIELD}: the image is not fit: it has more files, or more content, than its "
                "layers say",
                reason="ImageUnfit",
            )

    @staticmethod
    async def _first_error(
        unpacking: asyncio.Future[Any],
        scanning: asyncio.Future[Any],
        watching: asyncio.Future[None],
    ) -> None:
        """Both have to go well. What the scan says is better than what the unpacking says."""
        working: set[asyncio.Future[Any]] = {unpacking, scanning}
        while working:
            done, _ = await asyncio.wait(
                {*working, watching}, return_when=asyncio.FIRST_COMPLETED
            )
            if watching in done:
                watching.result()
            if scanning in done:
                scanning.result()
            if unpacking in done and unpacking.exception() and scanning in working:
                await asyncio.wait({scanning})
                scanning.result()
            if unpacking in done:
                unpacking.result()
            working -= done

    async def _unpack(self, layout: Path, target: Path) -> None:
        image = f"{layout}:{IMAGE}"
        command = ["umoci", "raw", "unpack", "--image", image, str(target)]
        box = await self._boxes.unpacking(layout, target.parent)
        await self._tools.run(command, box, lambda: files.remove_tree(target))

    async def _scan(
        self, layout: Path, layers: Sequence[LayerFile]
    ) -> frozenset[bytes]:
        """Paths of device nodes."""
        limits = [str(self._policy.max_content), str(self._policy.max_files)]
        program, needed = interpreter(Path(scan.__file__))
        each = [f"{layer.packed}:{layer.path}" for layer in layers]
        command = [*program, *limits, *each]
        done = await self._tools.run(
            command, await self._boxes.scanning(layout, needed)
        )
        found = json.loads(done.stdout)
        if "problem" in found:
            raise Refused(
                f"{FIELD}: layer {found['layer']} of {len(layers)} is not fit: "
                f"{found['problem']}",
                reason="ImageUnfit",
                resolution="build the image without it; max_image_mib and max_image_files "
                "are the operator's limits",
            )
        return frozenset(os.fsencode(path) for path in found["devices"])

    async def watch_space(self) -> None:
        """For as long as something uses it up. Exhausted."""
        while True:
            self.check_room(0)
            await asyncio.sleep(_LOOK_S)

    def check_room(self, needed: int) -> None:
        """Exhausted, saying how much is missing, unless that many bytes are free above the
        floor.
        """
        missing = needed + self._policy.free_floor - self._cache.free_bytes()
        if missing > 0:
            raise Exhausted(
                f"{-(-missing // _MIB)} MiB of disk space are missing for the image",
                reason="DiskFull",
                resolution="free space in the state directory (vmdriver images gc), or "
                "lower image_free_floor_mib",
            )

    # --- the disk

    async def make_disk(
        self, tree: Path, found: files.Tree, place: Path, digest: str
    ) -> Path:
        """An ext4 file system with what is in the tree, in the new folder `place`: as small as it
        can be, since each sandbox's own layer has the size that it asked for.
        """
        disk = place / "disk"
        await self._threads.run(_make_place, place)
        content_mib = -(-found.content // _MIB)
        size_mib = content_mib + content_mib // 16 + _JOURNAL_MIB + _SPARE_MIB
        # The ratio holds for what the file system grows to, too.
        per_inode = size_mib * _MIB // (found.files * 5 // 4 + 4096)
        per_inode = max(1024, min(_BYTES_PER_INODE, per_inode))
        size_mib += size_mib * 256 // per_inode
        self.check_room(found.content)
        # A fixed UUID and hash seed: the same image makes the same disk.
        seed = hashlib.sha256(digest.encode()).hexdigest()
        uuid = f"{seed[:8]}-{seed[8:12]}-4{seed[13:16]}-8{seed[17:20]}-{seed[20:32]}"
        extended = (
            f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1"
        )
        command = [
            *("mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", "root"),
            *("-U", uuid, "-i", str(per_inode), "-J", f"size={_JOURNAL_MIB}"),
            *("-E", extended, "-d", str(tree), str(disk), f"{size_mib}M"),
        ]
        box = await self._boxes.making_disk(tree, place)
        await self._tools.run(command, box, lambda: disk.unlink(missing_ok=True))
        await self._threads.run(files.take_over, disk, 0o600)
        return disk
