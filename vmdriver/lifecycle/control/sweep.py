"""Finds host objects that carry our mark and belong to no record."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vmdriver.host.retry import tried
from vmdriver.lifecycle.launch.marked import marked, remove
from vmdriver.lifecycle.memory.kept_memory import unneeded_memory
from vmdriver.lifecycle.ports.host import Found
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.record import SandboxRecord, layers_of

_log = logging.getLogger(__name__)


async def orphans(ports: Ports, known: set[str]) -> list[Found]:
    """What is marked as ours and claimed by nobody."""
    return [item for item in await marked(ports) if item.sandbox_id not in known]


async def remove_orphans(ports: Ports, known: set[str], instance: str) -> None:
    """Remove what nobody claims."""
    for orphan in await orphans(ports, known):
        _log.warning("removing %s %s: no record claims it", orphan.kind, orphan.name)
        await tried(_log, remove(ports, orphan, instance), orphan.name)


async def remove_unneeded_files(
    ports: Ports,
    paths: Paths,
    records: Sequence[SandboxRecord],
    begun: set[str],
    *,
    all_known: bool,
) -> None:
    """Layers and snapshots' checkpoints that a killed driver had made or was removing. `begun`:
    layers in some ledger, which a machine may be writing to already. Not `all_known`: there are
    sandboxes that cannot be read, and may need any layer.
    """
    needed = begun.union(*(layers_of(record) for record in records))
    for path in await ports.disks.layers() if all_known else []:
        if path not in needed:
            _log.warning("removing layer %s: no sandbox needs it", path)
            await tried(_log, ports.disks.remove(path), path)
    for record in records:
        for directory in await unneeded_memory(ports, paths, record):
            await tried(_log, ports.memory_store.remove(directory), directory)
