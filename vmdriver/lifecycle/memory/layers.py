"""The root disk's layers of a sandbox, and what else lies on disk for its sake: kept few, and no
longer than somebody needs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vmdriver.errors import DriverError, Refused
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.observer import Seen
from vmdriver.lifecycle.engine.resource import LAYER, OVERLAY
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.resources import Layers
from vmdriver.lifecycle.memory.kept_memory import KeptMemory, unneeded_memory
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.phase import Action, Phase
from vmdriver.model.plan import Disk
from vmdriver.model.record import layers_of

_log = logging.getLogger(__name__)


async def stand_on(
    sandbox: Sandbox,
    layers: tuple[str, ...],
    *,
    regardless: bool = False,
    **changes: Any,
) -> None:
    """Record and plan say from now on what the root disk consists of."""
    plan = sandbox.record.plan
    if plan is not None:
        plan = planner.on_layers(plan, layers, sandbox.record.base)
    changes = {"layers": layers, "plan": plan, **changes}
    await sandbox.decide(lambda _: changes, regardless=regardless)


@dataclass(frozen=True, kw_only=True)
class LayerUpkeep:
    """Done at rest. `of_others`: every layer that somebody else than that sandbox needs."""

    ports: Ports
    paths: Paths
    layers: Layers
    of_others: Callable[[str], set[str]]

    async def tidy(self, sandbox: Sandbox, _: Seen) -> bool:
        """Remove layers and memory that a step left, which was cut off, or could not remove or note
        something. What cannot be removed is tried again at the next rest. False: whatever it did,
        what comes next may be done.
        """
        if not sandbox.untidy:
            return False
        try:
            if sandbox.unsaved:
                await (
                    sandbox.update()
                )  # what the one on disk names is needed until then
            await self._remove_unneeded(sandbox)
        except DriverError as error:
            text = "files that it does not need stay for now"
            _log.warning("%s: %s: %s", sandbox.record.id, text, error.text())
            return False
        sandbox.untidy = False
        return False

    async def _remove_unneeded(self, sandbox: Sandbox) -> None:
        record, ledger = sandbox.record, sandbox.ledger
        held = (ledger.get(key) for key in (OVERLAY, LAYER))
        begun = {entry.data["path"] for entry in held if entry is not None}
        own = set(await self.ports.disks.layers(record.id))
        needless = own - layers_of(record) - begun
        if needless and ledger.get(MACHINE) is not None:
            await self._check_unused(record.layers[-1], needless)
        await self.layers.drop(record.id, needless)
        for directory in await unneeded_memory(self.ports, self.paths, record):
            await self.ports.memory_store.remove(directory)

    async def _check_unused(self, top: str, layers: set[str]) -> None:
        """Refused where the machine has one of these open, whatever the record says."""
        for path in sorted(layers):
            if await self.ports.memory.holds(path, top):
                name = path.rpartition("/")[2]
                raise Refused(f"the machine may be using {name}", reason="LayerInUse")

    async def merge_if_due(self, sandbox: Sandbox, _: Seen) -> bool:
        """Once after each stop, when whoever waits for it has been answered: it may take long,
        and a start does not wait for it. True: it was.
        """
        down = sandbox.record.phase in {Phase.STOPPED, Phase.SUSPENDED}
        if not (sandbox.merge_due and down):
            return False
        sandbox.underway.doing = Action.MERGE
        try:
            await self._merge(sandbox)
        except DriverError as error:
            text = f"the disk's layers stay as they are: {error.text()}"
            sandbox.tell("MergeFailed", text, warn=True)
        sandbox.merge_due = False
        return True

    async def _merge(self, sandbox: Sandbox) -> None:
        """Write the topmost layer into the one below while nobody else needs that one, so
        that a chain does not grow with every snapshot that ever was.
        """
        while len(sandbox.record.layers) - sandbox.record.inherited_layers > 1:
            record = sandbox.record
            *rest, below, top = record.layers
            kept = (e.layers for e in record.snapshots)
            others = self.of_others(record.id)
            if below in others or any(below in layers for layers in kept):
                return
            images = KeptMemory(self.ports.memory_store, self.paths)
            if await images.needs(record) & {below, top}:
                return  # kept memory is restored on these very files
            await self.ports.disks.merge_layer(
                Disk(
                    role="root",
                    path=top,
                    format="qcow2",
                    read_only=False,
                    backing=planner.below(record.layers, record.base),
                ),
                record.plan.user if record.plan else None,
            )
            await finished(self._stand_below(sandbox, top, (*rest, below)))

    async def _stand_below(
        self, sandbox: Sandbox, top: str, layers: tuple[str, ...]
    ) -> None:
        await sandbox.update(layers=layers)
        await self.ports.disks.remove(top)
