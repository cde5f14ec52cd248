"""What has to be done now and then: small consoles, no old snapshots, a look at what machines have
of the host.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from vmdriver.errors import TimedOut
from vmdriver.host import facts
from vmdriver.host.retry import tried
from vmdriver.lifecycle.control.device_news import DeviceWatch
from vmdriver.lifecycle.control.folder_news import FolderWatch
from vmdriver.lifecycle.engine.broadcast import GONE_S
from vmdriver.lifecycle.engine.jobs import Job
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.memory.snapshot import Snapshots
from vmdriver.lifecycle.ports.host import Disks, Hypervisor, Records
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.phase import MachineState

_log = logging.getLogger(__name__)
_CONSOLE_INTERVAL_S = 2.0
_DAY_S = 24 * 3600.0
_NOTE_S = 3600.0
_REMOVAL_WAIT_S = 10.0
_RETENTION_EVERY = 30
"""Rounds of the console interval between two looks at the snapshots' age."""

_FOLDERS_EVERY = 3
"""Of these rounds between two looks whether somebody reads machines' folders."""


@dataclass(eq=False)
class Housekeeping:
    """One task. `workers` is asked for anew each time, and so is `unread`: the consoles of
    sandboxes that cannot be read, whose machines may run.
    """

    workers: Callable[[], Iterable[Worker]]
    unread: Callable[[], Iterable[str]]
    hypervisor: Hypervisor
    disks: Disks
    records: Records
    settings: Settings
    snapshots: Snapshots
    devices: DeviceWatch
    folders: FolderWatch
    _had_machine: set[str] = field(default_factory=set, init=False)
    task: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self) -> None:
        """Begin."""
        self.task = asyncio.create_task(self._run(), name="housekeeping")

    def stop(self) -> None:
        """End."""
        if self.task is not None:
            self.task.cancel()

    async def _run(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(_CONSOLE_INTERVAL_S)
            await tried(_log, self._bound_consoles())
            await tried(_log, self.hypervisor.bound_logs(), "machines' logs")
            if rounds % _FOLDERS_EVERY == 0:
                await tried(_log, self.folders.look(), "host folders")
            if rounds % _RETENTION_EVERY == 0:
                await tried(_log, self.remove_expired())
                await tried(_log, self.devices.look())
                await tried(_log, self.records.forget_deleted(GONE_S))
            rounds += 1

    async def _bound_consoles(self) -> None:
        """Of whoever has a machine, whatever it is at, and once more when that is gone."""
        workers = list(self.workers())
        now = {
            w.sandbox.record.id
            for w in workers
            if w.sandbox.ledger.get(MACHINE) is not None
        }
        due, self._had_machine = now | self._had_machine, now
        for worker in workers:
            plan = worker.sandbox.record.plan
            if plan is not None and worker.sandbox.record.id in due:
                console = f"console of {worker.sandbox.record.id}"
                await tried(_log, self.disks.bound_console(plan.console), console)
        for path in self.unread():
            await tried(_log, self.disks.bound_console(path), path)

    async def remove_expired(self) -> None:
        """Snapshots that have been there for longer than the operator keeps them, by the host's
        running time: a wall clock may jump.
        """
        limit_s = self.settings.snapshot_retention_days * _DAY_S
        if not limit_s:
            return
        boot_id, uptime_s = facts.boot_id(), facts.uptime_s()
        for worker in list(self.workers()):
            must_note = False
            for entry in worker.sandbox.record.snapshots:
                age = entry.age.at(boot_id, uptime_s)
                if age.seconds > limit_s:
                    # One that has no time now must not keep the others waiting.
                    name = f"snapshot {entry.name} of {worker.sandbox.record.id}"
                    await tried(_log, self._remove(worker, entry.name), name)
                new = entry.age.boot_id != boot_id
                must_note |= new or age.seconds - entry.age.seconds >= _NOTE_S
            if must_note:
                name = f"age of the snapshots of {worker.sandbox.record.id}"
                await tried(_log, self._note_ages(worker, boot_id, uptime_s), name)

    async def _remove(self, worker: Worker, name: str) -> None:
        await self._perform(
            worker, lambda _: self.snapshots.remove(worker.sandbox, name)
        )

    async def _note_ages(self, worker: Worker, boot_id: str, uptime_s: float) -> None:
        """So that a restart of the host costs an hour of them at most."""

        async def note(_: MachineState) -> None:
            entries = (
                entry.model_copy(update={"age": entry.age.at(boot_id, uptime_s)})
                for entry in worker.sandbox.record.snapshots
            )
            await worker.sandbox.update(snapshots=tuple(entries))

        await self._perform(worker, note)

    @staticmethod
    async def _perform(worker: Worker, job: Job) -> None:
        try:
            async with asyncio.timeout(_REMOVAL_WAIT_S):
                await worker.perform(job)
        except TimeoutError as error:
            raise TimedOut("the sandbox is busy with something else") from error
