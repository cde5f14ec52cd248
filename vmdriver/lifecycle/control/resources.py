"""Every kind of thing that a ledger may hold, together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vmdriver.lifecycle.engine.ledger import Held, Ledger
from vmdriver.lifecycle.engine.resource import Given, Resources
from vmdriver.lifecycle.extending.notes import PREFIXES
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.resources import (
    AddressLease,
    Layers,
    Part,
    Undoer,
    launch_parts,
)
from vmdriver.lifecycle.memory.resources import memory_resources
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason


@dataclass(frozen=True)
class ExtensionEntries:
    """Those whose keys begin so: acquired and given back by the extensions' runner."""

    key: str
    undo: Callable[[SandboxRecord, Ledger, Held, Reason], Awaitable[None]]
    needs = ("extension",)

    async def release(self, given: Given) -> None:
        """CleanupError where the extension is not loaded."""
        assert given.record is not None  # noqa: S101 - extensions belong to sandboxes
        await self.undo(given.record, given.ledger, given.held, given.reason)


def every_resource(
    ports: Ports,
    pool: AddressPool,
    of_others: Callable[[str], set[str]],
    extensions_undo: Callable[[SandboxRecord, Ledger, Held, Reason], Awaitable[None]],
) -> tuple[tuple[Part, ...], Undoer]:
    """What a machine that comes up acquires, in order, and the release of all that there is.
    `of_others`: the layers that anybody else than that sandbox needs.
    """
    layers = Layers(ports.disks, of_others)
    parts = launch_parts(ports, layers)
    lease, kept = AddressLease(pool, ports.network), memory_resources(ports)
    extensions = [ExtensionEntries(prefix, extensions_undo) for prefix in PREFIXES]
    return parts, Undoer(Resources([lease, *parts, *kept, *extensions]), layers)
