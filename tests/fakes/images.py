"""An image cache that has every image."""

from __future__ import annotations

from pathlib import Path

from tests.fakes.world import World
from vmdriver.errors import Refused
from vmdriver.lifecycle.ports.images import (
    BaseDisk,
    CachedFile,
    CacheLimits,
    ImageProgress,
    KnownImage,
    ProgressSink,
)


class FakeImages:
    def __init__(self, world: World) -> None:
        self._world = world

    def check(self, reference: str) -> None:
        if reference.startswith("forbidden.test/"):
            raise Refused("template.image: not among the images that are allowed")

    def kept_name(self, beginning: str) -> str:
        names = [n for n in self._world.kept_names if n.startswith(beginning)]
        return names[-1] if names else ""

    async def prepare(
        self,
        reference: str,
        owner: str,
        progress: ProgressSink,
        *,
        again: bool = False,
    ) -> BaseDisk:
        self._world.act(f"prepare {reference}")
        progress(ImageProgress("CacheHit", reference))
        self._world.kept_checkpoints.add(owner)
        return BaseDisk("/base.ext4", "sha256:" + "0" * 64, self._world.image_config)

    def release(self, owner: str) -> None:
        self._world.kept_checkpoints.discard(owner)

    async def tree(
        self, reference: str, owner: str, progress: ProgressSink
    ) -> tuple[Path, str]:
        self._world.act(f"unpack {reference}")
        return Path("/tree"), "sha256:" + "1" * 64

    async def known(self) -> list[KnownImage]:
        return []

    async def collect(
        self, in_use: set[str], limits: CacheLimits, *, dry_run: bool = False
    ) -> list[CachedFile]:
        self._world.images_in_use = set(in_use)
        return []
