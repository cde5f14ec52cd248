"""What a checkpoint of a machine's memory says of itself, whoever it was taken from."""

from __future__ import annotations

from typing import Any

from vmdriver.host import facts
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.ports.memory import Captured
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.checkpoint import CheckpointKind, MemoryManifest, Part
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import utc_now


async def describe(
    ports: Ports,
    kind: CheckpointKind,
    plan: LaunchPlan,
    captured: Captured,
    parts: tuple[Part, ...],
    **more: Any,
) -> MemoryManifest:
    """Everything that a restore compares; `more`: the manifest's other fields. The machine's
    disks must be pinned by now. NotFound for a file that is missing, HostError.
    """
    versions = await ports.hypervisor.versions(plan.accelerator)
    return MemoryManifest(
        kind=kind,
        sandbox_id=plan.sandbox_id,
        created_at=utc_now(),
        host_boot_id=facts.boot_id(),
        plan=plan,
        versions=versions.model_copy(update={"machine": captured.machine}),
        cpu=captured.cpu,
        boot_digest=plan.boot_digest,
        supervisor_digest=plan.disk("supervisor").path.rpartition("/")[2],
        files=await ports.memory_store.identify(planner.files_of(plan)),
        parts=parts,
        **more,
    )
