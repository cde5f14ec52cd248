"""New sandboxes that start from a snapshot's disk: cold, with an identity of their own, and
only inside the workspace. A checkpoint with somebody's secrets in it is never given to
another sandbox.
"""

from __future__ import annotations

from collections.abc import Iterable

from vmdriver.errors import NotFound, Refused
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.memory.snapshot import find_snapshot
from vmdriver.model.checkpoint import SnapshotEntry
from vmdriver.model.phase import Intent
from vmdriver.model.snapshot_name import split_snapshot
from vmdriver.model.spec import SandboxSpec


def fork_source(
    workers: Iterable[Worker], spec: SandboxSpec
) -> tuple[Worker, SnapshotEntry] | None:
    """The snapshot that a new sandbox starts from; None: it starts from its image.

    NotFound when it is not there or of another workspace, whose names are nobody else's
    business. Refused when its sandbox is being deleted. Whoever stands on it must be noted
    without waiting for anything in between.
    """
    text = spec.driver_config.get("from_snapshot")
    if text is None:
        return None
    field = "template.driver_config.from_snapshot"
    sandbox, name = split_snapshot(str(text), field)
    for worker in workers:
        known = worker.sandbox.record.spec
        if known.workspace == spec.workspace and sandbox in {known.id, known.name}:
            if worker.sandbox.record.intent is Intent.DELETED:
                raise Refused(
                    f"{field}: sandbox {sandbox!r} is being deleted", reason="Deleting"
                )
            return worker, find_snapshot(worker.sandbox.record, name)
    raise NotFound(
        f"{field}: there is no sandbox {sandbox!r} in workspace {spec.workspace!r}",
        resolution="name a sandbox of the same workspace, and one of its snapshots",
    )
