"""What the checkpoints of sandboxes need of the host's files, by their own manifests."""

from __future__ import annotations

from collections.abc import Iterable

from vmdriver.lifecycle.ports.memory import MemoryStore
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.phase import Phase
from vmdriver.model.record import SandboxRecord


class KeptMemory:
    """Looks at what is on disk: a checkpoint that no record names (any more, or yet) counts too."""

    def __init__(self, store: MemoryStore, paths: Paths) -> None:
        self._store, self._paths = store, paths

    async def needs(self, record: SandboxRecord) -> set[str]:
        """Every file that a checkpoint of this sandbox depends on: disks, layers, boot files.
        StorageError when it cannot be known now.
        """
        paths = self._paths.of(record.id)
        names = await self._store.listed(paths.snapshots)
        own = {f"{paths.snapshots}/{name}" for name in names}
        own |= {paths.suspended, paths.kept}
        refs = [entry.memory for entry in record.snapshots] + [record.memory]
        own |= {ref.directory for ref in refs if ref is not None}
        found: set[str] = set()
        for directory in sorted(own):
            found |= await self._store.needs(directory)
        return found

    async def needs_of_all(self, records: Iterable[SandboxRecord]) -> set[str]:
        """The same of all these sandboxes."""
        found: set[str] = set()
        for record in records:
            found |= await self.needs(record)
        return found


async def unneeded_memory(
    ports: Ports, paths: Paths, record: SandboxRecord
) -> list[str]:
    """Directories of checkpoints that the record does not name; some may not be there."""
    files, found = paths.of(record.id), []
    named = record.memory is not None and record.memory.directory == files.suspended
    if not named and record.phase is not Phase.SUSPENDING:
        # Of a sandbox that was returned to a snapshot or booted instead.
        found.append(files.suspended)
    known = {entry.name for entry in record.snapshots}
    listed = await ports.memory_store.listed(files.snapshots)
    return found + [f"{files.snapshots}/{name}" for name in listed if name not in known]
