"""Makes what the cache holds: fetches an image once, unpacks it, makes its disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from vmdriver.errors import ImageError, Refused
from vmdriver.host import facts
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import ImageProgress, ProgressSink
from vmdriver.model.image import ImageConfig
from vmdriver.oci import files, manifest
from vmdriver.oci.cache import Cache, Entry, TreeEntry, identity
from vmdriver.oci.fetched import FetchedLayout
from vmdriver.oci.manifest import Manifest
from vmdriver.oci.resolve import Resolved
from vmdriver.oci.rootfs import RootFs
from vmdriver.oci.skopeo import SLACK, Skopeo

_log = logging.getLogger(__name__)
_ROOM_FACTOR = 6
"""A layer takes its own size, about three times that unpacked, and as much in the disk; the tree
goes when the disk is there. What is really needed is watched while it is done.
"""
_TELL_EVERY_S = 0.5


class Pipeline:
    """Cancellable at any time: what is fetched stays, what is half made goes."""

    def __init__(
        self, cache: Cache, skopeo: Skopeo, rootfs: RootFs, threads: Threads
    ) -> None:
        self._cache, self._skopeo = cache, skopeo
        self._rootfs, self._threads = rootfs, threads
        self._busy: list[Manifest] = []
        self._publishing: set[str] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    async def settle(self) -> None:
        """Wait until what was left to be removed is gone."""
        if self._leaving:
            await asyncio.wait(self._leaving)

    def _leave(self, tree: Path) -> None:
        """Nobody has to wait until a large tree is removed. It is out of the way at once; where
        there is no room to put it aside, it goes with the other work, which is waited for.
        """
        try:
            aside = Path(tempfile.mkdtemp(prefix=".work-", dir=self._cache.root))
            tree.rename(aside / "tree")
        except OSError as error:
            _log.info("%s is not put aside, but removed at once: %s", tree, error)
            return
        task = asyncio.create_task(self._threads.run(files.remove_tree, aside))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def needed(self) -> set[str]:
        """Paths in the cache that work under way needs."""
        blobs = {
            str(self._cache.blob(layer.digest))
            for found in self._busy
            for layer in found.layers
        }
        return blobs | self._publishing

    async def disk(self, found: Resolved, tell: ProgressSink) -> Entry:
        """A base disk. Refused, Exhausted, ImageError."""
        async with self._work(found) as work:
            name = found.reference[:200]
            raw = await self._skopeo.config(found.source)
            config = manifest.parse_config(raw, name, facts.oci_architecture())
            tree, size = await self._tree(found, work, tell)
            tell(ImageProgress("CreatingRootDisk", "making the base disk"))
            path = self._cache.new_disk(found.manifest.digest)
            part = await self._rootfs.make_disk(
                tree, size, work / "made", found.manifest.digest
            )
            # It is written out while it is read: a third of both is saved.
            content, _ = await asyncio.gather(
                self._threads.run(files.content_digest, part),
                self._threads.run(files.sync, part),
            )
            self._publishing.add(str(path))
            try:
                await self._threads.run(files.publish, part, path)
                entry = _entry(found, path, config, content)
                await self._threads.run(self._cache.save, entry)
            finally:
                self._publishing.discard(str(path))
            self._leave(tree)  # which was in the way of what is waited for
            tell(ImageProgress("PreparingRootfs", "the base disk is ready"))
            return entry

    async def tree(self, found: Resolved, tell: ProgressSink) -> TreeEntry:
        """The image as a directory. The same errors."""
        async with self._work(found) as work:
            tree, size = await self._tree(found, work, tell)
            entry = TreeEntry(
                digest=found.manifest.digest,
                references=(found.reference, *found.references),
                stored_bytes=size.content,
            )
            return await self._threads.run(self._cache.publish_tree, tree, entry)

    @contextlib.asynccontextmanager
    async def _work(self, found: Resolved) -> AsyncIterator[Path]:
        """A directory that is gone afterwards; meanwhile the image's layers stay."""
        self._rootfs.check_room(found.manifest.transfer_bytes * _ROOM_FACTOR)
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=self._cache.root))
        self._busy.append(found.manifest)
        try:
            yield work
        finally:
            self._busy.remove(found.manifest)
            await self._threads.run(files.remove_tree, work)

    async def _tree(
        self, found: Resolved, work: Path, tell: ProgressSink
    ) -> tuple[Path, files.Tree]:
        """The unpacked image, and what is in it. Layers of an earlier fetch that are damaged are
        fetched again.
        """
        try:
            return await self._fetch_and_unpack(found, work / "1", tell)
        except (ImageError, Refused):
            digests = [layer.digest for layer in found.manifest.layers]
            damaged = await self._threads.run(self._cache.drop_damaged_blobs, digests)
            if not damaged:
                raise
            _log.warning("fetching again, they were damaged: %s", ", ".join(damaged))
        return await self._fetch_and_unpack(found, work / "2", tell)

    async def _fetch_and_unpack(
        self, found: Resolved, place: Path, tell: ProgressSink
    ) -> tuple[Path, files.Tree]:
        fetched = FetchedLayout(place / "layout", self._cache)
        place.mkdir()
        boxed = bool(found.source.registry)
        await self._threads.run(fetched.make, found.manifest, boxed)
        try:
            await self._fetch(found, fetched, tell)
        finally:
            await self._threads.run(fetched.keep)
        tell(ImageProgress("ExportingRootfs", "unpacking the layers"))
        # The stores of container engines may hand layers out in another form.
        same = boxed or found.source.directory is not None
        wanted = found.manifest if same else None
        layers = await self._threads.run(fetched.layers, wanted, found.reference[:200])
        made = await self._rootfs.unpack(fetched, layers, place / "tree")
        await self._threads.run(files.remove_tree, fetched.path)
        return made

    async def _fetch(
        self, found: Resolved, fetched: FetchedLayout, tell: ProgressSink
    ) -> None:
        """Until all is there, or what watches it has something against it."""
        copying = asyncio.ensure_future(
            self._skopeo.copy(found.source, fetched.path, found.manifest)
        )
        watching = [
            asyncio.ensure_future(self._tell_bytes(found, fetched, tell)),
            asyncio.ensure_future(self._rootfs.watch_space()),
        ]
        tasks: set[asyncio.Future[None]] = {copying, *watching}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: task is copying):
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _tell_bytes(
        self, found: Resolved, fetched: FetchedLayout, tell: ProgressSink
    ) -> None:
        """PullingLayer, again and again; layers that are whole are kept at once. ImageError when
        more comes than was said.
        """
        wanted = found.manifest
        total, count = wanted.transfer_bytes, len(wanted.layers)
        while True:
            await self._threads.run(fetched.keep)
            there = [layer for layer in wanted.layers if self._is_there(layer.digest)]
            under_way = await self._threads.run(fetched.under_way)
            if found.source.registry and under_way > total + SLACK:
                raise ImageError(
                    f"image {found.reference[:200]} is not fetched: its registry sends more "
                    f"than the {total} bytes that its manifest says"
                )
            done = min(total, sum(layer.size for layer in there) + under_way)
            number = min(len(there) + 1, count)
            text = f"layer {number} of {count}, {done / 2**20:.1f} of {total / 2**20:.1f} MiB"
            tell(ImageProgress("PullingLayer", text, done, total))
            await asyncio.sleep(_TELL_EVERY_S)

    def _is_there(self, digest: str) -> bool:
        return self._cache.blob(digest).exists()


def _entry(found: Resolved, path: Path, config: ImageConfig, content: str) -> Entry:
    return Entry(
        path=str(path),
        digest=found.manifest.digest,
        references=found.references,
        config=config,
        layers=tuple(layer.digest for layer in found.manifest.layers),
        stored_bytes=files.stored_bytes(path),
        virtual_bytes=path.stat().st_size,
        created=time.time(),
        identity=identity(path),
        content=content,
    )
