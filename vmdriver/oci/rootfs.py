"""From an image in an OCI layout to a base disk: scan, unpack, make the file system."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vmdriver.errors import CommandError, Exhausted, ImageError, Killed, Refused
from vmdriver.host import process
from vmdriver.host.threads import Threads
from vmdriver.oci import files
from vmdriver.oci.cache import Cache
from vmdriver.oci.policy import ImagePolicy
from vmdriver.oci.reference import FIELD
from vmdriver.oci.skopeo import IMAGE

_LOOK_S = 0.25
_SCAN_MEMORY = 512 * 2**20
_MIB = 2**20
_JOURNAL_MIB = 16
_SPARE_MIB = 64
_BYTES_PER_INODE = 16384
_log = logging.getLogger(__name__)


def _nothing() -> None:
    pass


class RootFs:
    """Works below a directory that its caller removes."""

    def __init__(self, cache: Cache, policy: ImagePolicy, threads: Threads) -> None:
        self._cache, self._policy, self._threads = cache, policy, threads

    # --- unpack

    async def unpack(self, layout: Path, layers: Sequence[Path], target: Path) -> None:
        """The layers on top of each other, as a tree. Refused for an image that is not fit,
        naming the layer; Exhausted when it fills the disk; ImageError.
        """
        unpacking = asyncio.ensure_future(self._unpack(layout, target))
        scanning = asyncio.ensure_future(self._scan(layers))
        watching = asyncio.ensure_future(self._watch_space())
        tasks = {unpacking, scanning, watching}
        try:
            await self._first_error(unpacking, scanning, watching)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    @staticmethod
    async def _first_error(
        unpacking: asyncio.Future[None],
        scanning: asyncio.Future[None],
        watching: asyncio.Future[None],
    ) -> None:
        """Both have to go well. What the scan says is better than what the unpacking says."""
        working = {unpacking, scanning}
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
        # The limit is of one file: a hostile one cannot fill the disk between two looks.
        limit = ["prlimit", f"--fsize={self._policy.max_content}", "--core=0"]
        image = f"{layout}:{IMAGE}"
        command = [*limit, "umoci", "raw", "unpack", "--image", image, str(target)]
        await self._tool(command, lambda: files.remove_tree(target))

    async def _scan(self, layers: Sequence[Path]) -> None:
        limits = [str(self._policy.max_content), str(self._policy.max_files)]
        # Headers are read into memory, and may say that they are as large as they like.
        memory = ["prlimit", f"--as={_SCAN_MEMORY}", "--core=0"]
        program = [*memory, sys.executable, "-P", "-m", "vmdriver.oci.scan"]
        done = await self._tool([*program, *limits, *(str(path) for path in layers)])
        found = json.loads(done.stdout)
        if "problem" in found:
            raise Refused(
                f"{FIELD}: layer {found['layer']} of {len(layers)} is not fit: "
                f"{found['problem']}",
                reason="ImageUnfit",
                resolution="build the image without it; max_image_mib and max_image_files "
                "are the operator's limits",
            )

    async def _watch_space(self) -> None:
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

    async def make_disk(self, tree: Path, disk: Path, digest: str) -> None:
        """An ext4 file system with what is in the tree: as small as it can be, since each
        sandbox's own layer has the size that it asked for.
        """
        found = await self._threads.run(files.tidy, tree)
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
        await self._tool(command, lambda: disk.unlink(missing_ok=True))

    async def _tool(
        self, command: list[str], clear: Callable[[], None] = _nothing
    ) -> process.Completed:
        """One that is killed is begun once more, `clear` having removed what it had made: that
        says nothing about the image.
        """
        try:
            return await self._once(command)
        except Killed as error:
            _log.warning("%s: it is tried once more", error)
        try:
            await self._threads.run(clear)
            return await self._once(command)
        except Killed as error:
            raise ImageError(
                f"the image cannot be turned into a disk: {error} twice",
                detail=error.detail,
                reason=Killed.reason,
                resolution="this says nothing about the image: look in the host's log for who "
                "ended the program (out of memory?), then create the sandbox again",
            ) from error

    async def _once(self, command: list[str]) -> process.Completed:
        try:
            return await process.run(command, deadline_s=self._policy.build_deadline_s)
        except Killed:
            raise
        except CommandError as error:
            raise ImageError(
                f"the image cannot be turned into a disk: {error}",
                detail=error.detail,
                resolution="the image may be damaged; push it again",
            ) from error
