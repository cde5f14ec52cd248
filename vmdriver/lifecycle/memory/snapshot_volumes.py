"""Volumes in snapshots: copies of the same moment as the disk's, where that is asked for.

What a machine may write to is copied by its own QEMU while it goes on, all but what it wrote last;
that follows while the workload stands still for the disk's sake anyway. What no machine may write
to (a stopped sandbox's, or one that it only reads) is copied here, and nobody gets it to write
meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vmdriver.errors import NotFound, TimedOut
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.lifecycle.launch.volumes import Volumes
from vmdriver.lifecycle.memory.free_space import check_free
from vmdriver.lifecycle.memory.resources import CopiedVolumes
from vmdriver.lifecycle.ports.memory import MachineMemory
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.volumes import CopyStore, Piece
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.checkpoint import SnapshotEntry, VolumeCopy
from vmdriver.model.plan import LaunchPlan

_SOON = 8 * 2**20
"""Bytes that may be left when the workload is frozen: they are copied while it stands still."""
_LOOK_S = 0.05
LONGEST_S, SLOWEST_MIB_S = 60.0, 16
"""Copying may take so many seconds, and one more for each so many MiB."""


@dataclass(frozen=True)
class Copy:
    """One volume that is being copied."""

    volume_id: str
    role: str
    live: bool
    """Its machine may write to it, and copies it."""
    made: VolumeCopy


@dataclass(frozen=True)
class Copies:
    """All of one snapshot's; none of one without volumes."""

    memory: MachineMemory
    store: CopyStore
    domain: str
    copies: Sequence[Copy] = ()

    @property
    def live(self) -> tuple[Copy, ...]:
        """Those that the machine copies."""
        return tuple(copy for copy in self.copies if copy.live)

    async def end(self, watch: Stopwatch) -> None:
        """While the workload stands still: they are of this moment."""
        if self.live:
            with watch.step("volumes"):
                roles = [copy.role for copy in self.live]
                await self.memory.end_copies(self.domain, roles)

    async def sealed(self) -> tuple[VolumeCopy, ...]:
        """As the record is to name them: durable, and nobody writes to them. StorageError."""
        found = []
        for copy in self.copies:
            size = await self.store.seal(copy.made.path, copy.made.size_mib)
            found.append(copy.made.model_copy(update={"stored_bytes": size}))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class SnapshotVolumes:
    """Of one driver."""

    ports: Ports
    paths: Paths
    volumes: Volumes

    def none(self) -> Copies:
        """For a snapshot without volumes."""
        return Copies(self.ports.memory, self.ports.volume_copies, "")

    async def begin(
        self, sandbox: Sandbox, plan: LaunchPlan, kept: ExitStack, *, runs: bool
    ) -> Copies:
        """Copy the volumes of the plan, up to what little is left of those that its machine writes
        to. Until `kept` ends nobody gets one of the others to write. NotFound, Refused, Exhausted,
        TimedOut, HostError: what was begun is in the ledger.
        """
        async with self.volumes.changing:  # who is being let in has it already
            copies = self._wanted(sandbox, plan, kept, runs=runs)
        if not copies:
            return self.none()
        store, memory = self.ports.volume_copies, self.ports.memory
        await self._check_room(copies)
        live = {copy.role: copy.made.path for copy in copies if copy.live}

        async def begin() -> None:
            for copy in copies:
                what = copy.made.path, copy.made.size_mib, plan.user
                await store.begin(*what, writes=copy.live)
            if live:
                await memory.begin_copies(plan.domain, live)

        paths = [copy.made.path for copy in copies]
        resource = CopiedVolumes(self.ports.disks, memory)
        domain = plan.domain if live else ""
        names = ", ".join(copy.made.name for copy in copies)
        sandbox.tell("VolumesCopying", f"{names}: for the snapshot")
        await resource.acquire(sandbox.ledger, domain, paths, begin)
        for copy in copies:
            if not copy.live:
                await store.copy(copy.volume_id, copy.made.path)
        if live:
            await self._nearly(plan.domain, copies)
        return Copies(memory, store, domain, copies)

    def _wanted(
        self, sandbox: Sandbox, plan: LaunchPlan, kept: ExitStack, *, runs: bool
    ) -> list[Copy]:
        copies = []
        for mounted in plan.volumes:
            disk = plan.disk(mounted.role)
            known = self.volumes.find(mounted.workspace, mounted.name)
            live = runs and not disk.read_only
            if not live:
                owner = sandbox.record.id
                self.volumes.check_free(known, owner, read_only=True)
                kept.enter_context(self.volumes.busy(known, "copied"))
            path = self.paths.volume_copy(sandbox.record.id, plan.user)
            made = VolumeCopy(name=mounted.name, size_mib=known.size_mib, path=path)
            copies.append(Copy(known.id, mounted.role, live, made))
        return copies

    async def _check_room(self, copies: Sequence[Copy]) -> None:
        """Exhausted."""
        stored_bytes = self.ports.volumes.stored_bytes
        needed = sum([await stored_bytes(copy.volume_id) for copy in copies])
        await self._check_free(copies[0].made.path, needed)

    async def _check_free(self, path: str, needed: int) -> None:
        what = "copies of the volumes"
        way_out = "free space in the state directory, or remove snapshots"
        await check_free(self.ports.disks, path, needed, what, way_out)

    async def _nearly(self, domain: str, copies: Sequence[Copy]) -> None:
        """Wait until so little is left that the workload can wait for it."""
        size_mib = sum(copy.made.size_mib for copy in copies if copy.live)
        end = time.monotonic() + LONGEST_S + size_mib / SLOWEST_MIB_S
        while True:
            left = await self.ports.memory.uncopied_bytes(domain)
            if left is not None and left <= _SOON:
                return
            if time.monotonic() > end:
                raise TimedOut(
                    "the machine's volumes are not copied in time: more is written than copied, "
                    "or this host's disk is slow",
                    reason="VolumesNotCopied",
                    resolution="take the snapshot when less is written, or of the stopped sandbox",
                )
            await self._check_free(copies[0].made.path, 0)
            await asyncio.sleep(_LOOK_S)

    def content(self, entry: SnapshotEntry, name: str) -> AsyncIterator[Piece]:
        """What is on one of a snapshot's volumes. NotFound, StorageError."""
        return self.ports.volume_copies.content(find_copy(entry, name).path)


def find_copy(entry: SnapshotEntry, name: str) -> VolumeCopy:
    """A snapshot's volume. NotFound."""
    for copy in entry.volumes:
        if copy.name == name:
            return copy
    held = ", ".join(copy.name for copy in entry.volumes) or "none"
    raise NotFound(
        f"snapshot {entry.name!r} has no volume {name!r}",
        resolution=f"it has {held}; snapshot create --volumes takes them too",
    )
