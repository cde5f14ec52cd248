"""A snapshot's volumes put back, all of them or none, together with the disk.

What each is to be lies beside it, whole, before the record stands on the snapshot. From then on it
is put in place, in whatever process, whoever asks for what meanwhile; before that, it is removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vmdriver.errors import NotFound, Refused
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.engine.resource import VOLUMES, VOLUMES_BACK, Given
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.launch.volumes import Volumes
from vmdriver.lifecycle.memory.free_space import check_free
from vmdriver.lifecycle.ports.host import Disks
from vmdriver.lifecycle.ports.volumes import CopyStore
from vmdriver.model.checkpoint import SnapshotEntry, VolumeCopy
from vmdriver.model.record import SandboxRecord
from vmdriver.model.volume import Volume


@dataclass(frozen=True)
class VolumesBack:
    """Its entry holds the volumes, as a machine's would."""

    volumes: Volumes
    store: CopyStore
    disks: Disks
    key, needs = VOLUMES_BACK, ("ids", "layer", "ready")

    async def check(self, record: SandboxRecord, entry: SnapshotEntry) -> None:
        """Refused, NotFound, Exhausted where they could not be put back now."""
        for volume in self._wanted(record, entry):
            self.volumes.check_free(volume, record.id, read_only=False)
        # Or its machine would be ended in vain.
        place, needed = entry.layers[-1], entry.volume_bytes
        what, way_out = "the snapshot's volumes", "free space in the state directory"
        await check_free(self.disks, place, needed, what, way_out)

    def _wanted(self, record: SandboxRecord, entry: SnapshotEntry) -> list[Volume]:
        if not entry.volumes:
            raise Refused(
                f"snapshot {entry.name!r} has no volumes",
                reason="NoVolumesKept",
                resolution="return without --volumes: they stay as they are; snapshot create "
                "--volumes takes them too",
            )
        return [self._present(record, copy) for copy in entry.volumes]

    def _present(self, record: SandboxRecord, copy: VolumeCopy) -> Volume:
        try:
            volume = self.volumes.find(record.spec.workspace, copy.name)
        except NotFound as error:
            raise NotFound(
                error.message,
                reason="VolumeMissing",
                resolution=f"vmdriver volume create {copy.name} --size-mib {copy.size_mib} makes "
                "one to put it back on",
            ) from error
        if volume.size_mib < copy.size_mib:
            raise Refused(
                f"volume {volume.shown!r} has {volume.size_mib} MiB, and had {copy.size_mib} at "
                "the snapshot",
                reason="VolumeTooSmall",
                resolution="vmdriver volume grow makes it larger",
            )
        return volume

    async def prepare(self, sandbox: Sandbox, entry: SnapshotEntry, layer: str) -> None:
        """Have all lie beside their volumes, which are nobody else's from now on. They are put in
        place by the release when the record stands on `layer`. Refused, NotFound, HostError.
        """
        record, ledger = sandbox.record, sandbox.ledger
        wanted = self._wanted(record, entry)
        await self.acquire(ledger, record.id, wanted, layer)
        for volume, copy in zip(wanted, entry.volumes, strict=True):
            await self.store.prepare(volume.id, copy.path, volume.size_mib)
        data = _entry(wanted, layer) | {"ready": "yes"}
        await ledger.remember(self.key, data)

    async def acquire(
        self, ledger: Ledger, owner: str, volumes: Sequence[Volume], layer: str
    ) -> None:
        """Have them be nobody else's. Refused, StorageError."""
        hold = partial(self.volumes.hold, volumes, owner)
        await ledger.acquire(self.key, Scope.CAPTURE, _entry(volumes, layer), hold)

    async def release(self, given: Given) -> None:
        stands = given.record is not None and given["layer"] in given.record.layers
        attached, ids = given.ledger.get(VOLUMES), given["ids"].split()
        for name in ids:
            if given["ready"] and stands:
                await self.store.put_back(name)
            else:
                await self.store.drop_back(name)
        for name in ids:
            if attached is None or name not in str(attached.data["ids"]).split():
                await self.volumes.let_go(name, given.owner)


def _entry(volumes: Sequence[Volume], layer: str) -> dict[str, str]:
    return {"ids": " ".join(v.id for v in volumes), "layer": layer, "ready": ""}
