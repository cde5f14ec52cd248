"""What operators ask of volumes. Each returns when it is done, and raises why it is not; cut off
anywhere, the volume is there as it was, or as it was to be.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from vmdriver.errors import DriverError, InvalidRequest, Refused
from vmdriver.host.retry import tried
from vmdriver.host.threads import finished
from vmdriver.lifecycle.launch.volumes import Volumes
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.volume import Volume, check_name, check_size

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeenVolume:
    """A volume, and what is so now."""

    volume: Volume
    stored_bytes: int
    sandboxes: tuple[str, ...]
    """Ids of those that have it."""
    read_only: bool
    """None of these may write to it."""


@dataclass(frozen=True, kw_only=True)
class VolumeJobs:
    """Of one driver."""

    volumes: Volumes

    async def all(self) -> list[SeenVolume]:
        """By workspace, then name."""
        return [await self._seen(volume) for volume in self.volumes.all()]

    async def _seen(self, volume: Volume) -> SeenVolume:
        stored = await self.volumes.store.stored_bytes(volume.id)
        holders = self.volumes.holders(volume)
        return SeenVolume(volume, stored, tuple(sorted(holders)), all(holders.values()))

    async def create(self, workspace: str, name: str, size_mib: int) -> SeenVolume:
        """An empty one. AlreadyExists, Exhausted, InvalidRequest."""
        volume = self._new(workspace, name, size_mib)
        await self.volumes.make(volume, partial(self.volumes.store.make, volume))
        return await self._seen(volume)

    async def receive(
        self, workspace: str, name: str, size_mib: int, pieces: AsyncIterator[Piece]
    ) -> SeenVolume:
        """One with that content: zero where no piece is; a piece must lie within `size_mib`.
        Returns when it is durable. InvalidRequest for its name or size, AlreadyExists, Refused,
        Exhausted, StorageError, and whatever the pieces raise: then there is none, and none when
        this is cancelled. Its place is taken meanwhile, and it counts.
        """
        volume = self._new(workspace, name, size_mib)
        receive = partial(self.volumes.store.receive, volume, pieces)
        await self.volumes.make(volume, receive)
        return await self._seen(volume)

    def _new(self, workspace: str, name: str, size_mib: int) -> Volume:
        return self.volumes.new(
            workspace, check_name(name, "name"), check_size(size_mib, "size_mib")
        )

    async def content(self, workspace: str, name: str) -> AsyncIterator[Piece]:
        """What is on it. Refused while a sandbox may write to it; nobody gets it meanwhile who
        could.
        """
        with ExitStack() as exported:
            async with self.volumes.changing:  # who is being let in has it already
                volume = self.volumes.find(workspace, name)
                if not all(self.volumes.holders(volume).values()):
                    self._refuse_in_use(volume)
                exported.enter_context(self.volumes.busy(volume, "exported"))
            async for piece in self.volumes.store.content(volume):
                yield piece

    async def remove(self, workspace: str, name: str) -> None:
        """For good. Refused while a sandbox has it."""
        async with self.volumes.changing:
            volume = self._unused(workspace, name)

            async def remove() -> None:
                await self.volumes.store.remove(volume.id)
                self.volumes.removed(volume)

            await finished(remove())

    async def grow(self, workspace: str, name: str, size_mib: int) -> SeenVolume:
        """Make it larger; its file system takes the room at the next mount. Refused while a sandbox
        has it, Exhausted.
        """
        check_size(size_mib, "size_mib")
        async with self.volumes.changing:
            volume = self._unused(workspace, name)
            if size_mib < volume.size_mib:
                raise InvalidRequest(
                    "size_mib",
                    f"{size_mib} MiB are less than the {volume.size_mib} that it has: what is on "
                    "it would be lost",
                )
            self.volumes.check_room(workspace, size_mib - volume.size_mib)
            larger = volume.model_copy(update={"size_mib": size_mib})
            # Whoever attaches it after a crash in between makes it so large.
            await self.volumes.note(larger)
            try:
                await self.volumes.store.grow(larger)
            except DriverError:  # or nobody could attach it any more
                what = f"volume {volume.shown}"
                await finished(tried(_log, self.volumes.note(volume), what))
                raise
        return await self._seen(larger)

    def _unused(self, workspace: str, name: str) -> Volume:
        volume = self.volumes.find(workspace, name)
        self.volumes.check_idle(volume)
        if self.volumes.holders(volume):
            self._refuse_in_use(volume)
        return volume

    def _refuse_in_use(self, volume: Volume) -> NoReturn:
        names = ", ".join(sorted(self.volumes.holders(volume)))
        raise Refused(
            f"volume {volume.shown!r} is attached to sandbox {names}",
            reason="VolumeInUse",
            resolution="stop or delete that first (suspended, it keeps its volumes)",
        )
