"""Implements lifecycle.ports.Images: resolve, fetch, unpack, make a disk; each image once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vmdriver.errors import ImageError, Refused
from vmdriver.host import facts
from vmdriver.host.threads import Pool
from vmdriver.lifecycle.image_ports import (
    BaseDisk,
    CachedFile,
    CacheLimits,
    ImageProgress,
    KnownImage,
    ProgressSink,
)
from vmdriver.model.image import ImageConfig
from vmdriver.oci import files, manifest
from vmdriver.oci.build import Builder
from vmdriver.oci.cache import Cache, Entry, identity
from vmdriver.oci.flight import Flights
from vmdriver.oci.manifest import Manifest
from vmdriver.oci.policy import ImagePolicy
from vmdriver.oci.resolve import Resolved, Resolver
from vmdriver.oci.retention import to_remove
from vmdriver.oci.skopeo import Skopeo

_log = logging.getLogger(__name__)
_ROOM_FACTOR = 6
"""A layer takes its own size, about three times that unpacked, and as much in the disk; the tree
goes when the disk is there. What is really needed is watched while it is done.
"""
_TELL_EVERY_S = 0.5
_YOUNG_S = 300.0
"""What was asked for so lately is in use, whether or not a record says so yet."""


class ImageStore:
    """The image cache of one state directory."""

    def __init__(self, root: Path, pool: Pool, policy: ImagePolicy) -> None:
        self._cache = Cache(root)
        self._pool, self._policy = pool, policy
        self._skopeo = Skopeo(policy)
        self._resolver = Resolver(self._skopeo, policy, pool)
        self._builder = Builder(self._cache, policy, pool)
        self._flights: Flights[Entry] = Flights()
        self._kept: dict[str, str] = {}
        """Owner -> path of the disk that was prepared for it."""
        self._building: list[Manifest] = []
        self._publishing: set[str] = set()
        self._taking = asyncio.Lock()
        """Held while a disk is looked up and kept, or found unneeded and removed."""

    async def open(self) -> None:
        """Make the directories and remove what was under way when the last process ended."""
        await self._pool.run(self._cache.open)

    # --- for sandboxes

    async def prepare(
        self, reference: str, owner: str, progress: ProgressSink
    ) -> BaseDisk:
        """See ports.Images. Requests for one image share the work."""
        async with self._taking:
            entry = await self._keep(await self._known(reference), owner)
        if entry is None:
            progress(ImageProgress("ResolvingImage", f"resolving {reference}"))
            found = await self._resolver.resolve(reference)
            async with self._taking:
                entry = await self._pool.run(self._cache.find, found.manifest.digest)
                await self._keep(entry, owner)
        if entry is not None:
            text = f"{entry.digest} is prepared already"
            progress(ImageProgress("CacheHit", text))
        else:
            text = f"{found.manifest.digest} is not prepared yet"
            progress(ImageProgress("CacheMiss", text))
            entry = await self._flights.join(
                found.manifest.digest, lambda tell: self._build(found, tell), progress
            )
            await self._keep(entry, owner)
        return BaseDisk(entry.path, entry.digest, entry.config)

    async def _keep(self, entry: Entry | None, owner: str) -> Entry | None:
        if entry is not None:
            self._kept[owner] = entry.path
            await self._pool.run(self._cache.touch, entry)
        return entry

    def release(self, owner: str) -> None:
        """See ports.Images."""
        self._kept.pop(owner, None)

    async def _known(self, reference: str) -> Entry | None:
        """Without asking anybody: a digest that is here, or a tag that was just looked up."""
        pinned = self._resolver.pinned(reference)
        if pinned:
            return await self._pool.run(self._cache.by_reference, pinned)
        found = self._resolver.recent(reference)
        if found is None:
            return None
        return await self._pool.run(self._cache.find, found.manifest.digest)

    # --- make

    async def _build(self, found: Resolved, tell: ProgressSink) -> Entry:
        work = Path(tempfile.mkdtemp(prefix=".work-", dir=self._cache.root))
        self._building.append(found.manifest)
        try:
            raw = await self._skopeo.config(found.source)
            config = manifest.parse_config(
                raw, found.reference[:200], facts.oci_architecture()
            )
            self._builder.check_room(found.manifest.transfer_bytes * _ROOM_FACTOR)
            tree = await self._tree(found, work, tell)
            tell(ImageProgress("CreatingRootDisk", "making the base disk"))
            part, path = work / "disk", self._cache.new_disk(found.manifest.digest)
            await self._builder.make_disk(tree, part, found.manifest.digest)
            sha256 = await self._builder.digest(part)
            self._publishing.add(str(path))
            try:
                await self._pool.run(files.publish, part, path)
                entry = _entry(found, path, config, sha256)
                await self._pool.run(self._cache.save, entry)
            finally:
                self._publishing.discard(str(path))
            tell(ImageProgress("PreparingRootfs", "the base disk is ready"))
            return entry
        finally:
            self._building.remove(found.manifest)
            await self._pool.run(files.remove_tree, work)

    async def _tree(self, found: Resolved, work: Path, tell: ProgressSink) -> Path:
        """The unpacked image. Layers of an earlier fetch that are damaged are fetched again."""
        try:
            return await self._fetch_and_unpack(found, work / "1", tell)
        except (ImageError, Refused):
            digests = [layer.digest for layer in found.manifest.layers]
            damaged = await self._pool.run(self._cache.drop_damaged_blobs, digests)
            if not damaged:
                raise
            _log.warning("fetching again, they were damaged: %s", ", ".join(damaged))
        return await self._fetch_and_unpack(found, work / "2", tell)

    async def _fetch_and_unpack(
        self, found: Resolved, place: Path, tell: ProgressSink
    ) -> Path:
        layout, tree = place / "layout", place / "root"
        layout.mkdir(parents=True)
        (layout / "blobs").symlink_to(self._cache.blobs)
        telling = asyncio.create_task(self._tell_bytes(found.manifest, layout, tell))
        try:
            await self._skopeo.copy(found.source, layout)
        finally:
            telling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await telling
        tell(ImageProgress("ExportingRootfs", "unpacking the layers"))
        layers = await self._pool.run(self._fetched_layers, layout, found)
        await self._builder.unpack(layout, layers, tree)
        return tree

    def _fetched_layers(self, layout: Path, found: Resolved) -> Sequence[Path]:
        """As they are in the layout: skopeo may have written the manifest anew."""
        name = found.reference[:200]
        index = manifest.read((layout / "index.json").read_bytes(), name)
        digest = str(index["manifests"][-1]["digest"])
        raw = self._cache.blob(digest).read_bytes()
        fetched = manifest.parse(manifest.read(raw, name), raw, name)
        return [self._cache.blob(layer.digest) for layer in fetched.layers]

    async def _tell_bytes(
        self, wanted: Manifest, layout: Path, tell: ProgressSink
    ) -> None:
        """PullingLayer, again and again."""
        total, count = wanted.transfer_bytes, len(wanted.layers)
        while True:
            there = [layer for layer in wanted.layers if self._is_there(layer.digest)]
            under_way = sum(_size(path) for path in layout.glob("oci-put-blob*"))
            done = min(total, sum(layer.size for layer in there) + under_way)
            number = min(len(there) + 1, count)
            text = f"layer {number} of {count}, {done / 2**20:.1f} of {total / 2**20:.1f} MiB"
            tell(ImageProgress("PullingLayer", text, done, total))
            await asyncio.sleep(_TELL_EVERY_S)

    def _is_there(self, digest: str) -> bool:
        return self._cache.blob(digest).exists()

    # --- the cache

    async def known(self) -> list[KnownImage]:
        """See ports."""
        return [
            KnownImage(
                BaseDisk(used.entry.path, used.entry.digest, used.entry.config),
                used.entry.references,
                used.entry.stored_bytes,
                used.entry.virtual_bytes,
                used.entry.created,
                used.used,
            )
            for used in await self._pool.run(self._cache.entries)
        ]

    async def collect(
        self, in_use: set[str], limits: CacheLimits, *, dry_run: bool = False
    ) -> list[CachedFile]:
        """See ports."""
        cached = await self._pool.run(self._cached, in_use)
        free = await self._pool.run(self._cache.free_bytes)
        chosen = to_remove(cached, limits, time.time(), free)
        for item in [] if dry_run else chosen:
            async with self._taking:
                # Once more: it may have been asked for since.
                if item.path in self._wanted() or self._is_young(Path(item.path)):
                    continue
                _log.info("image cache: removing %s", item.path)
                await self._pool.run(self._cache.remove_disk, Path(item.path))
        return chosen

    def _wanted(self) -> set[str]:
        """What work under way, or somebody whose record does not say so yet, needs."""
        blobs = {
            str(self._cache.blob(layer.digest))
            for found in self._building
            for layer in found.layers
        }
        return blobs.union(self._kept.values(), self._publishing)

    def _is_young(self, path: Path) -> bool:
        try:
            return self._cache.age_s(path.with_suffix(".json")) < _YOUNG_S
        except FileNotFoundError:
            return False

    def _cached(self, in_use: set[str]) -> list[CachedFile]:
        wanted = self._wanted()
        disks = [
            CachedFile(
                used.entry.path,
                used.entry.stored_bytes,
                used.used,
                used.entry.path in in_use | wanted
                or self._is_young(Path(used.entry.path)),
            )
            for used in self._cache.entries()
        ]
        orphans = [
            CachedFile(
                str(p),
                files.stored_bytes(p),
                0.0,
                str(p) in in_use | wanted,
                known=False,
            )
            for p in self._cache.orphan_disks()
        ]
        blobs = [
            CachedFile(
                str(p),
                files.stored_bytes(p),
                p.stat().st_mtime,
                str(p) in wanted or self._cache.age_s(p) < _YOUNG_S,
            )
            for p in (self._cache.blobs / "sha256").iterdir()
        ]
        return [*disks, *orphans, *blobs]


def _entry(found: Resolved, path: Path, config: ImageConfig, sha256: str) -> Entry:
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
        sha256=sha256,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
