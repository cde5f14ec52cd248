"""Looks after the image cache: which base disks are needed, what leaves, the default image."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vmdriver.host.retry import tried
from vmdriver.lifecycle.memory.kept_memory import KeptMemory
from vmdriver.lifecycle.ports.images import (
    BaseDisk,
    CachedFile,
    CacheLimits,
    ImageProgress,
    KnownImage,
    ProgressSink,
)
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord

_log = logging.getLogger(__name__)
_INTERVAL_S = 600.0
_PREFETCH = "prefetch:"


@dataclass(eq=False)
class ImageUpkeep:
    """One task. `records` and `plans` are asked for anew each time; `plans` are those of
    templates and of machines that wait. Not `all_known`: a sandbox cannot be read.
    """

    ports: Ports
    settings: Settings
    records: Callable[[], list[SandboxRecord]]
    plans: Callable[[], list[LaunchPlan]]
    kept: KeptMemory
    all_known: Callable[[], bool]
    task: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin: with the default image."""
        self.task = asyncio.create_task(self._run(), name="image upkeep")

    async def close(self) -> None:
        """End. What is under way for sandboxes is not touched."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task})

    async def _run(self) -> None:
        image = self.settings.default_image
        if image and self.settings.prefetch_default_image:
            await tried(_log, self.prefetch(image, _note))
        while True:
            await tried(_log, self.collect())
            await asyncio.sleep(_INTERVAL_S)

    async def prefetch(
        self, reference: str, progress: ProgressSink, *, again: bool = False
    ) -> BaseDisk:
        """Have an image as a disk before anybody needs it. `again`: as what its name means now,
        also where that is kept to a digest.
        """
        owner, prepare = f"{_PREFETCH}{reference}", self.ports.images.prepare
        try:
            return await prepare(reference, owner, progress, again=again)
        finally:
            self.ports.images.release(owner)

    async def in_use(self) -> set[str]:
        """Base disks that somebody stands on, and whatever a checkpoint depends on.
        StorageError.
        """
        needed = await self.kept.needs_of_all(self.records())
        needed.update(record.base for record in self.records() if record.base)
        return needed.union(p.disk("root").backing[-1] for p in self._all_plans())

    def _all_plans(self) -> list[LaunchPlan]:
        own = [record.plan for record in self.records() if record.plan is not None]
        return own + self.plans()

    async def known(self) -> Sequence[KnownImage]:
        """What is prepared."""
        return await self.ports.images.known()

    async def collect(self, *, dry_run: bool = False) -> Sequence[CachedFile]:
        """Remove what nobody needs and the limits leave no room for."""
        if not self.all_known():
            _log.warning(
                "images stay: a sandbox that cannot be read may need any of them"
            )
            return ()
        needed = await self.in_use()
        if not dry_run:
            supervisors = {plan.disk("supervisor").path for plan in self._all_plans()}
            await self.ports.supervisor_disks.collect(supervisors | needed)
        settings = self.settings
        limits = CacheLimits(
            settings.image_cache_bytes,
            settings.image_cache_s,
            settings.image_free_floor_bytes,
        )
        return await self.ports.images.collect(needed, limits, dry_run=dry_run)


def _note(progress: ImageProgress) -> None:
    _log.debug("default image: %s: %s", progress.reason, progress.detail)
