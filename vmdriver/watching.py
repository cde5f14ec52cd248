"""What a running driver shows of itself to those who watch over hosts."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from vmdriver import __version__
from vmdriver.app import Driver
from vmdriver.errors import DriverError
from vmdriver.host import facts
from vmdriver.host.threads import alone
from vmdriver.lifecycle.engine.resource import HOST_MOUNTS
from vmdriver.storage import disk_use
from vmdriver.telemetry import seen
from vmdriver.telemetry.last_seen import LastSeen
from vmdriver.telemetry.machines import Usages
from vmdriver.telemetry.seen import Value
from vmdriver.telemetry.telemetry import Telemetry
from vmdriver.telemetry.use import MachineUse

_DISK_EVERY_S = 60.0
_FOLDERS_EVERY_S = 10.0
"""It looks at every process of the host."""


class Watching:
    """Looks at a driver. A disk or a QEMU that hangs, or takes long, holds up none of the other
    figures. Until it `is_ready`, what is its sandboxes' is not known, and not shown as nothing.
    """

    def __init__(
        self, driver: Driver, use: MachineUse, is_ready: Callable[[], bool]
    ) -> None:
        self._driver, self._use, self._is_ready = driver, use, is_ready
        self._usages = Usages(facts.uptime_s())
        self._images = LastSeen[Sequence[Value]]("images", ())
        self._folders = LastSeen[Sequence[Value]](
            "folders", (), every_s=_FOLDERS_EVERY_S
        )
        self._disk = LastSeen[Sequence[Value]]("disk", (), every_s=_DISK_EVERY_S)

    async def look(self) -> Sequence[Value]:
        """Everything there is to show now."""
        ready = self._is_ready()
        host = seen.of_host(facts.memory_mib() * 2**20, facts.available_memory_bytes())
        disk, more = await asyncio.gather(
            self._disk.look(self._of_disk), self._of_sandboxes(ready=ready)
        )
        return [*seen.of_begin(ready=ready), *host, *disk, *more]

    async def _of_sandboxes(self, *, ready: bool) -> Sequence[Value]:
        if not ready:
            return ()
        machines = self._driver.config.machines
        limits = machines.max_sandboxes, machines.max_committed_mem_mib
        images, used, folders = await asyncio.gather(
            self._images.look(self._of_images),
            self._use.look(),
            self._folders.look(self._of_folders),
        )
        core = seen.of_core(self._driver.core, *limits)
        return [*core, *images, *folders, *self._usages.note(used.of)]

    async def _of_images(self) -> Sequence[Value]:
        try:
            return seen.of_images(await self._driver.images.known())
        except DriverError:
            return ()  # its folder cannot be read: the disk's own figures say it

    async def _of_folders(self) -> Sequence[Value]:
        sandboxes = self._driver.core.sandboxes.accepted()
        if not any(worker.sandbox.ledger.get(HOST_MOUNTS) for worker in sandboxes):
            return seen.of_folders(0, 0)
        return seen.of_folders(*await self._driver.folders.memory())

    async def _of_disk(self) -> Sequence[Value]:
        return await alone("disk-use", _disk_values, self._driver.layout.root)


def _disk_values(root: Path) -> Sequence[Value]:
    disk = shutil.disk_usage(root)
    return seen.of_disk(disk_use.by_folder(root), disk.free, disk.total)


def watched(
    driver: Driver, use: MachineUse, is_ready: Callable[[], bool]
) -> Telemetry | None:
    """Begins with what was configured. None: nothing was. ConfigError."""
    config = driver.config
    listen, endpoint = config.driver.metrics_listen, config.gateway.otlp_endpoint
    if not listen and not endpoint:
        return None
    telemetry = Telemetry(
        listen=listen,
        otlp_endpoint=endpoint,
        instance=config.driver.instance,
        version=__version__,
    )
    telemetry.start(Watching(driver, use, is_ready).look)
    return telemetry
