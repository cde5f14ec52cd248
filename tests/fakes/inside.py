"""What some tests must know of a driver's inside. Nobody else reaches so deep: where a part is moved,
this file follows, and no test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from vmdriver.lifecycle.engine.broadcast import Subscription
from vmdriver.lifecycle.engine.jobs import Job
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.pool import Waiting
from vmdriver.wiring import Core


class Inside:
    """Of one driver."""

    def __init__(self, core: Core, ports: Ports) -> None:
        self._core, self.ports = core, ports
        self._manager, self._leftovers = core.manager, core.leftovers

    @property
    def budget(self) -> MemoryBudget:
        return self._core.budget

    def is_busy(self, sandbox_id: str = "s1") -> bool:
        """Its loop is looking or doing something, or about to."""
        return is_at_work(self._core.sandboxes.workers[sandbox_id])

    def was_cut_off(self, sandbox_id: str = "s1") -> bool:
        """What it was doing is being ended for something more urgent."""
        return self._core.sandboxes.workers[sandbox_id].sandbox.underway.cut

    def update(self, sandbox_id: str, **changes: Any) -> Awaitable[None]:
        """Change its record as its own loop would."""
        return self._core.sandboxes.workers[sandbox_id].sandbox.update(**changes)

    def perform(self, sandbox_id: str, job: Job) -> Awaitable[None]:
        """Have its loop do this between two turns."""
        return self._core.sandboxes.workers[sandbox_id].perform(job)

    def subscriptions(self) -> set[Subscription]:
        """Of everybody who watches."""
        return self._core.broadcaster._subscriptions

    def leases(self) -> list[str]:
        """Who has an address."""
        return sorted(self._core.addresses.owned.now)

    def left_over(self) -> list[str]:
        """Owners of what belongs to no sandbox and could not be given back yet."""
        return sorted(self._leftovers._kept)

    def waiting(self) -> list[Waiting]:
        """Machines that wait to be claimed."""
        return list(self._manager.warm_pool._waiting)

    def builds(self) -> list[str]:
        """Keys of the templates that are being built, or are to be."""
        return list(self._manager.templates._wanted)

    def failed_builds(self) -> list[str]:
        """Keys of the templates that are not built for a while, since that has failed."""
        return list(self._manager.templates._failed)

    async def cut_consoles(self) -> None:
        """What housekeeping does to consoles each minute."""
        await self._manager.housekeeping._bound_consoles()

    def tasks(self) -> list[asyncio.Task[Any]]:
        """All that a kill ends."""
        workers = list(self._core.sandboxes.workers.values())
        tasks = [
            *(worker._task for worker in workers),
            *(worker.sandbox.underway.task for worker in workers),
            self._manager.housekeeping.task,
            self._manager.images.task,
            self._manager.templates._builder,
            self._manager.warm_pool._filler,
            *self._manager.warm_pool._looks,
            *self._leftovers._tasks.values(),
        ]
        return [task for task in tasks if task is not None]


def is_at_work(worker: Worker) -> bool:
    """Its loop is looking or doing something, or about to."""
    if worker._task is None or worker._task.done():
        return False
    return worker.sandbox.underway.task is not None or worker.sandbox.woken.is_set()
