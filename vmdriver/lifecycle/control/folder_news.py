"""Tells sandboxes of folders of the host that their machines do not reach any more, since the
program that read them has ended. QEMU cannot be given another one (it keeps no state of what the
guest has open): the machine goes on, and whatever in it asks for such a folder waits.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from vmdriver.errors import DriverError
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.resource import HOST_MOUNTS
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.ports.folders import HostFolders
from vmdriver.model.host_mount import HostMount
from vmdriver.model.phase import MachineState, Phase

_NOTE_S = 10.0
_TELLING = 2
"""The look, of those in a row, at which it is told."""


@dataclass(eq=False)
class FolderWatch:
    """Each folder once in a run, when it is missing at two looks: a machine that ends takes its
    programs along, a moment before that is known.
    """

    host: HostFolders
    sandboxes: Sandboxes
    _looks: dict[tuple[str, int, str], int] = field(default_factory=dict, init=False)
    """By sandbox, launch and tag: how many looks in a row, up to the last, it was missing at."""

    async def look(self) -> None:
        """HostError."""
        watched = [w for w in self.sandboxes.workers.values() if _has_folders(w)]
        if not watched:
            self._looks.clear()
            return
        there = await self.host.shared()
        missing = {}
        for worker in watched:
            held = worker.sandbox.ledger.get(HOST_MOUNTS)
            plan, record = worker.sandbox.record.plan, worker.sandbox.record
            if held is None or plan is None or not _has_folders(worker):
                continue  # it has gone down meanwhile
            tags = there.get(str(held.data["mark"]), set())
            for folder in plan.host_mounts:
                if folder.tag not in tags:
                    missing[record.id, record.launches, folder.tag] = worker, folder
        self._looks = {key: self._looks.get(key, 0) + 1 for key in missing}
        for key, (worker, folder) in missing.items():
            if self._looks[key] == _TELLING:
                await _tell(worker, folder)


def _has_folders(worker: Worker) -> bool:
    sandbox = worker.sandbox
    return (
        sandbox.record.phase is Phase.RUNNING
        and sandbox.ledger.get(MACHINE) is not None
        and sandbox.ledger.get(HOST_MOUNTS) is not None
    )


async def _tell(worker: Worker, folder: HostMount) -> None:
    text = (
        f"what read the host's folder {folder.path} has ended; whatever in the machine asks for "
        f"{folder.mount} waits until the sandbox is stopped and started"
    )
    worker.sandbox.tell("HostMountLost", text, warn=True)

    async def note(_: MachineState) -> None:
        if _has_folders(worker):
            await worker.sandbox.update(note=text)

    # What has no time for it now is told by the event alone.
    with suppress(TimeoutError, DriverError):
        async with asyncio.timeout(_NOTE_S):
            await worker.perform(note)
