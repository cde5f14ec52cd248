"""Whether one snapshot more may be taken of a sandbox."""

from __future__ import annotations

from vmdriver.errors import AlreadyExists, Exhausted, Refused
from vmdriver.lifecycle.memory.capture import refuse_unkept, refuse_volumes
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.phase import MachineState, Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord
from vmdriver.model.snapshot_name import check_snapshot_name


def takeable(
    record: SandboxRecord,
    machine: MachineState,
    *,
    disk_only: bool,
    volumes: bool,
) -> tuple[LaunchPlan, bool]:
    """The plan of the machine that one is taken of, and whether it runs. Refused where it cannot be
    taken now, not with the memory, or not with volumes.
    """
    plan, phase = record.plan, record.phase
    runs = phase is Phase.RUNNING and machine is MachineState.READY
    if plan is None or not (runs or (phase is Phase.STOPPED and disk_only)):
        raise Refused(
            f"sandbox {record.id} is {phase.value}",
            reason="NotRunning",
            resolution="start or resume it; of a stopped one --disk-only is possible",
        )
    if not disk_only:
        refuse_unkept(plan)
        refuse_volumes(plan)
    if volumes and not plan.volumes:
        raise Refused(
            f"sandbox {record.id} has no volumes that a snapshot could have in it",
            reason="NoVolumes",
            resolution="take it without --volumes",
        )
    return plan, runs


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
