"""Whether one snapshot more may be taken of a sandbox."""

from __future__ import annotations

from vmdriver.errors import AlreadyExists, Exhausted
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.record import SandboxRecord
from vmdriver.model.snapshot_name import check_snapshot_name


def check_room(
    record: SandboxRecord, name: str, settings: Settings, host: tuple[int, int]
) -> None:
    """`host`: number and bytes of all snapshots that there are. InvalidRequest, AlreadyExists,
    Exhausted.
    """
    check_snapshot_name(name, "name")
    if any(entry.name == name for entry in record.snapshots):
        raise AlreadyExists(f"sandbox {record.id} has a snapshot {name!r} already")
    own = sum(entry.stored_bytes for entry in record.snapshots)
    host_count, host_bytes = host
    for have, most, key, unit in (
        (len(record.snapshots), settings.max_snapshots, "max_snapshots", 1),
        (own, settings.max_snapshot_bytes, "max_snapshot_mib", 2**20),
        (host_count, settings.max_host_snapshots, "max_host_snapshots", 1),
        (
            host_bytes,
            settings.max_host_snapshot_bytes,
            "max_host_snapshot_mib",
            2**20,
        ),
    ):
        if have >= most:
            raise Exhausted(
                f"{key}: {have // unit} of {most // unit} are used",
                reason="SnapshotLimit",
                resolution="remove snapshots, or raise the limit",
            )
    if len(record.layers) >= settings.max_layers:
        raise Exhausted(
            f"the root disk has {len(record.layers)} layers, the limit is "
            f"{settings.max_layers}",
            reason="TooManyLayers",
            resolution="remove snapshots, then stop the sandbox: layers that no "
            "snapshot needs are merged",
        )
