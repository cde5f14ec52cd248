"""What a driver does when it starts: reads every sandbox from disk, sets aside what cannot be read,
and removes what nobody claims.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from vmdriver.errors import DriverError
from vmdriver.host.retry import tried
from vmdriver.lifecycle.control import sweep
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.control.set_aside import Shelf
from vmdriver.lifecycle.engine.broadcast import GONE_S, Broadcaster
from vmdriver.lifecycle.engine.resource import LAYER
from vmdriver.lifecycle.engine.worker import Hire
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.launch.users import UserPool
from vmdriver.lifecycle.launch.volumes import Volumes
from vmdriver.lifecycle.memory.resources import copies_begun
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.template import Templates
from vmdriver.model import wishes
from vmdriver.model.phase import Intent
from vmdriver.model.record import SandboxRecord
from vmdriver.model.wishes import Wish

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Of all sandboxes of one driver."""

    sandboxes: Sandboxes
    shelf: Shelf
    hire: Hire
    broadcaster: Broadcaster
    ports: Ports
    paths: Paths
    extensions: ExtensionRunner
    templates: Templates
    users: UserPool
    volumes: Volumes

    async def read(self) -> None:
        """A worker for every sandbox, not started yet; on the shelf those that cannot be read."""
        records, shelf = self.ports.records, self.shelf
        await self.volumes.open()
        self.broadcaster.recall(await records.deleted(GONE_S))
        # Those that go last: earlier drivers handed on what such a ledger may still hold.
        for record in sorted(await records.load_all(), key=_goes):
            await self._take_up(record)
        self.sandboxes.complete = records.all_there()
        for sandbox_id, problem in records.unreadable().items():
            await shelf.put(sandbox_id, problem)
        for aside in list(shelf.kept.values()):
            known = aside.record
            if known is not None and (_goes(known) or not known.extensions.accepted):
                await tried(_log, self.take_down(aside.id))

    async def _take_up(self, record: SandboxRecord) -> None:
        try:
            ledger = self.shelf.ledger(record)
        except DriverError as error:
            await self.shelf.put(record.id, error.message, record)
            return
        worker = self.hire(record, ledger)
        worker.sandbox.reconcile_due = self.extensions.take_part(record)
        self.sandboxes.workers[record.id] = worker
        if not record.extensions.accepted:
            await worker.sandbox.decide(partial(wishes.changes, Wish.DELETE))

    async def take_down(self, sandbox_id: str) -> None:
        """One that cannot be read is to be deleted: from here on as any other."""
        taken = await self.shelf.take(sandbox_id)
        if taken is not None:
            worker = self.hire(*taken)
            self.sandboxes.workers[sandbox_id] = worker
            worker.sandbox.announce()

    async def sweep(self, instance: str) -> None:
        """Remove what nobody claims, templates that cannot be used any more among it. The users of
        what stays are nobody else's.
        """
        all_there = self.ports.records.all_there()
        all_known = all_there and not self.sandboxes.set_aside
        await self._remove_unclaimed(instance, all_there, all_known)
        found = await self.ports.machine_users.collect(
            self.users.held(), all_known=all_known
        )
        self.users.avoid(found)

    async def _remove_unclaimed(
        self, instance: str, all_there: bool, all_known: bool
    ) -> None:
        sandboxes = self.sandboxes
        await self.templates.recover(collect=all_known)
        if not all_there:
            _log.error(
                "the directory of sandboxes was in the way and is set aside: machines "
                "that no sandbox claims stay, until it is put back or removed"
            )
            return
        claimed = {*sandboxes.workers, *sandboxes.set_aside}
        await sweep.remove_orphans(self.ports, claimed, instance)
        await sweep.remove_unneeded_files(
            self.ports,
            self.paths,
            sandboxes.records(),
            self._layers_begun() | self.templates.layers(),
            all_known=all_known,
        )

    def _layers_begun(self) -> set[str]:
        ledgers = [w.sandbox.ledger for w in self.sandboxes.workers.values()]
        entries = (ledger.get(LAYER) for ledger in ledgers)
        layers = {entry.data["path"] for entry in entries if entry is not None}
        return layers.union(*map(copies_begun, ledgers))


def _goes(record: SandboxRecord) -> bool:
    return record.intent is Intent.DELETED
