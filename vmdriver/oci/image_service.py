"""Implements lifecycle.ports.images.Images: resolve, fetch, unpack, make a disk; one image once."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable
from pathlib import Path

from vmdriver.errors import HostError, NotFound
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.shared import Shared
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import (
    BaseDisk,
    CachedFile,
    CacheLimits,
    ImageProgress,
    KnownImage,
    ProgressSink,
)
from vmdriver.oci import files
from vmdriver.oci.boxes import ImageBoxes
from vmdriver.oci.cache import Cache, Entry, TreeEntry
from vmdriver.oci.kept import KeptNames
from vmdriver.oci.pipeline import Pipeline
from vmdriver.oci.policy import ImagePolicy
from vmdriver.oci.resolve import Resolved, Resolver
from vmdriver.oci.retention import to_remove
from vmdriver.oci.rootfs import RootFs
from vmdriver.oci.single_flight import SingleFlight
from vmdriver.oci.skopeo import Skopeo

_log = logging.getLogger(__name__)
KEPT = "kept.json"
_YOUNG_S = 300.0
"""What was asked for so lately is in use, whether or not a record says so yet."""


class ImageService:
    """The image cache of one state directory."""

    def __init__(
        self,
        root: Path,
        threads: Threads,
        policy: ImagePolicy,
        *,
        numbers: UserNamespace,
    ) -> None:
        self._cache = Cache(root)
        self._threads, self._policy = threads, policy
        boxes = ImageBoxes(policy, numbers)
        skopeo = Skopeo(policy, boxes, threads)
        self._kept_names = KeptNames(root / KEPT, policy.kept_repositories)
        self._resolver = Resolver(skopeo, policy, threads, self._kept_names)
        rootfs = RootFs(self._cache, policy, threads, boxes)
        self._pipeline = Pipeline(self._cache, skopeo, rootfs, threads)
        self._resolving: SingleFlight[Resolved] = SingleFlight()
        self._making: SingleFlight[Entry] = SingleFlight()
        self._trees: SingleFlight[TreeEntry] = SingleFlight()
        self._kept: dict[str, str] = {}
        """Owner -> path of the disk that was prepared for it."""
        self._taking = Shared()
        """Who looks a disk up and keeps it is among others; alone, who removes one that he finds
        unneeded.
        """

    async def open(self) -> None:
        """Make the directories and remove what was under way when the last process ended."""
        await self._threads.run(self._cache.open)

    async def close(self) -> None:
        """Let go."""
        await self._pipeline.settle()

    # --- for sandboxes

    def check(self, reference: str) -> None:
        with contextlib.suppress(NotFound):
            self._resolver.pinned(reference)

    def kept_name(self, beginning: str) -> str:
        return self._kept_names.last(beginning)

    async def prepare(
        self,
        reference: str,
        owner: str,
        progress: ProgressSink,
        *,
        again: bool = False,
    ) -> BaseDisk:
        """Requests for one image share the work."""
        async with self._taking.among():
            known = None if again else await self._known(reference)
            entry = await self._keep(known, owner)
        if entry is None:
            progress(ImageProgress("ResolvingImage", f"resolving {reference}"))
            found = await self._resolve(reference, again=again)
            async with self._taking.among():
                entry = await self._threads.run(self._cache.find, found.manifest.digest)
                await self._keep(entry, owner)
        if entry is not None:
            text = f"{entry.digest} is prepared already"
            progress(ImageProgress("CacheHit", text))
        else:
            text = f"{found.manifest.digest} is not prepared yet"
            progress(ImageProgress("CacheMiss", text))
            entry = await self._making.join(
                found.manifest.digest,
                lambda tell: self._pipeline.disk(found, tell),
                progress,
            )
            await self._keep(entry, owner)
        return BaseDisk(entry.path, entry.digest, entry.config)

    async def tree(
        self, reference: str, owner: str, progress: ProgressSink
    ) -> tuple[Path, str]:
        names = (reference, self._resolver.pinned(reference))
        entry = await self._keep_tree(owner, [n for n in names if "@sha256:" in n])
        if entry is None:
            entry = await self._new_tree(reference, owner, progress)
        return self._cache.tree(entry.digest), entry.digest

    async def _keep_tree(self, owner: str, names: Iterable[str]) -> TreeEntry | None:
        """The tree that has one of these names, kept for the owner from now on."""
        async with self._taking.among():
            for home, entry in await self._threads.run(self._cache.tree_entries):
                if set(names) & set(entry.references):
                    self._kept[owner] = str(home)
                    await self._threads.run(os.utime, home / "source.json")
                    return entry
        return None

    async def _new_tree(
        self, reference: str, owner: str, progress: ProgressSink
    ) -> TreeEntry:
        try:
            found = await self._resolve(reference)
        except HostError as error:
            entry = await self._keep_tree(owner, [reference])
            if entry is None:
                raise
            text = "%s is taken as it was last (%s): %s"
            _log.warning(text, reference, entry.digest, error)
            return entry
        known = await self._keep_tree(owner, found.references)
        if known is not None:
            return known
        digest = found.manifest.digest
        self._kept[owner] = str(self._cache.tree(digest).parent)
        return await self._trees.join(
            digest, lambda tell: self._pipeline.tree(found, tell), progress
        )

    async def _resolve(self, reference: str, *, again: bool = False) -> Resolved:
        """Who asks at the same time is given the same answer."""
        return await self._resolving.join(
            f"again {reference}" if again else reference,
            lambda _: self._resolver.resolve(reference, again=again),
            lambda _: None,
        )

    async def _keep(self, entry: Entry | None, owner: str) -> Entry | None:
        if entry is not None:
            self._kept[owner] = entry.path
            await self._threads.run(self._cache.touch, entry)
        return entry

    def release(self, owner: str) -> None:
        self._kept.pop(owner, None)

    async def _known(self, reference: str) -> Entry | None:
        """Without asking anybody: a digest that is here, or a tag that was just looked up."""
        pinned = self._resolver.pinned(reference)
        if pinned:
            return await self._threads.run(self._cache.by_reference, pinned)
        found = self._resolver.recent(reference)
        if found is None:
            return None
        return await self._threads.run(self._cache.find, found.manifest.digest)

    # --- the cache

    async def known(self) -> list[KnownImage]:
        return [
            KnownImage(
                BaseDisk(used.entry.path, used.entry.digest, used.entry.config),
                used.entry.references,
                used.entry.stored_bytes,
                used.entry.virtual_bytes,
                used.entry.created,
                used.used,
            )
            for used in await self._threads.run(self._cache.entries)
        ]

    async def collect(
        self, in_use: set[str], limits: CacheLimits, *, dry_run: bool = False
    ) -> list[CachedFile]:
        cached = await self._threads.run(self._cached, in_use)
        free = await self._threads.run(self._cache.free_bytes)
        chosen = to_remove(cached, limits, time.time(), free)
        for item in [] if dry_run else chosen:
            async with self._taking.alone():
                # Once more: it may have been asked for since.
                young = time.time() - self._cache.used(Path(item.path)) < _YOUNG_S
                if item.path in self._wanted() or young:
                    continue
                _log.info("image cache: removing %s", item.path)
                await self._threads.run(self._cache.remove, Path(item.path))
        return chosen

    def _wanted(self) -> set[str]:
        """What work under way, or somebody whose record does not say so yet, needs."""
        return self._pipeline.needed().union(self._kept.values())

    def _cached(self, in_use: set[str]) -> list[CachedFile]:
        needed = in_use | self._wanted()
        now, cache = time.time(), self._cache

        def cached(path: Path, size: int, *, known: bool = True) -> CachedFile:
            used = cache.used(path)
            busy = str(path) in needed or now - used < _YOUNG_S
            return CachedFile(str(path), size, used, busy, known)

        disks = [(Path(u.entry.path), u.entry.stored_bytes) for u in cache.entries()]
        trees = [(home, entry.stored_bytes) for home, entry in cache.tree_entries()]
        blobs = [(path, files.stored_bytes(path)) for path in cache.all_blobs()]
        orphans = [(path, files.stored_bytes(path)) for path in cache.orphan_disks()]
        return [
            *(cached(path, size) for path, size in [*disks, *trees, *blobs]),
            *(cached(path, size, known=False) for path, size in orphans),
        ]
