"""Finds host objects that carry our mark and belong to no record."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Sequence

from vmdriver.errors import DriverError
from vmdriver.lifecycle.launch.launcher import Places
from vmdriver.lifecycle.launch.resources import Ports
from vmdriver.lifecycle.ports.host import Found
from vmdriver.model.ids import mark
from vmdriver.model.phase import Phase
from vmdriver.model.record import SandboxRecord, layers_of

_log = logging.getLogger(__name__)


async def marked(ports: Ports) -> list[Found]:
    """What is marked as ours, machines first: they hold the rest."""
    return [*await ports.hypervisor.marked(), *await ports.network.marked()]


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
    places: Places,
    records: Sequence[SandboxRecord],
    begun: set[str],
    *,
    all_known: bool,
) -> None:
    """Layers and snapshots' images that a killed driver had made or was removing. `begun`:
    layers in some ledger, which a machine may be writing to already. Not `all_known`: there are
    sandboxes that cannot be read, and may need any layer.
    """
    needed = begun.union(*(layers_of(record) for record in records))
    for path in await ports.disks.layers() if all_known else []:
        if path not in needed:
            _log.warning("removing layer %s: no sandbox needs it", path)
            await tried(_log, ports.disks.remove(path), path)
    for record in records:
        for directory in await unneeded_memory(ports, places, record):
            await tried(_log, ports.memory_store.remove(directory), directory)


async def unneeded_memory(
    ports: Ports, places: Places, record: SandboxRecord
) -> list[str]:
    """Directories of images that the record does not name; some may not be there."""
    paths, found = places.paths(record.id), []
    named = record.memory is not None and record.memory.directory == paths.suspended
    if not named and record.phase is not Phase.SUSPENDING:
        # Of a sandbox that was returned to a snapshot or booted instead.
        found.append(paths.suspended)
    known = {entry.name for entry in record.snapshots}
    listed = await ports.memory_store.listed(paths.snapshots)
    return found + [f"{paths.snapshots}/{name}" for name in listed if name not in known]


async def remove(ports: Ports, orphan: Found, instance: str) -> None:
    """Remove one of them."""
    if orphan.kind == "domain":
        await ports.hypervisor.destroy(orphan.name)
    elif orphan.kind == "firewall":
        await ports.network.remove_rules(orphan.name)
    elif orphan.kind == "tap":
        await ports.network.remove_tap(orphan.name, mark(instance, orphan.sandbox_id))


async def tried(
    log: logging.Logger, work: Awaitable[object], what: str = "upkeep"
) -> None:
    """Do something that nobody waits for: what cannot be done now is tried at the next occasion.
    No trouble of one thing ends the care for all others.
    """
    try:
        await work
    except DriverError as error:
        log.warning("%s: cannot be done now: %s", what, error.text())
    except Exception:
        log.exception("%s: failed", what)
