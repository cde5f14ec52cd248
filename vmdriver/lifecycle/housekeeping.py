"""What has to be done now and then: consoles kept small, old snapshots removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from datetime import timedelta

from vmdriver.errors import TimedOut
from vmdriver.lifecycle.ports import Disks
from vmdriver.lifecycle.settings import Settings
from vmdriver.lifecycle.sweep import tried
from vmdriver.lifecycle.worker import SandboxWorker
from vmdriver.model.phase import Phase
from vmdriver.model.record import utc_now

_log = logging.getLogger(__name__)
_CONSOLE_INTERVAL_S = 2.0
_REMOVAL_WAIT_S = 10.0
_RETENTION_EVERY = 30
"""Rounds of the console interval between two looks at the snapshots' age."""


class Housekeeping:
    """One task. `workers` is asked for anew each time."""

    def __init__(
        self,
        workers: Callable[[], Iterable[SandboxWorker]],
        disks: Disks,
        settings: Settings,
    ) -> None:
        self._workers = workers
        self._disks = disks
        self._settings = settings
        self.task: asyncio.Task[None] | None = None

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
            if rounds % _RETENTION_EVERY == 0:
                await tried(_log, self.remove_expired())
            rounds += 1

    async def _bound_consoles(self) -> None:
        for worker in list(self._workers()):
            plan = worker.record.plan
            if plan is not None and worker.record.phase in {
                Phase.RUNNING,
                Phase.LAUNCHING,
            }:
                console = f"console of {worker.record.id}"
                await tried(_log, self._disks.bound_console(plan.console), console)

    async def remove_expired(self) -> None:
        """Snapshots that are older than the operator keeps them."""
        days = self._settings.snapshot_retention_days
        if not days:
            return
        oldest = utc_now() - timedelta(days=days)
        for worker in list(self._workers()):
            for entry in worker.record.snapshots:
                if entry.created_at < oldest:
                    # One that has no time now must not keep the others waiting.
                    name = f"snapshot {entry.name} of {worker.record.id}"
                    await tried(_log, self._remove(worker, entry.name), name)

    @staticmethod
    async def _remove(worker: SandboxWorker, name: str) -> None:
        try:
            async with asyncio.timeout(_REMOVAL_WAIT_S):
                await worker.perform(lambda _: worker.remove_snapshot(name))
        except TimeoutError as error:
            raise TimedOut("the sandbox is busy with something else") from error
