"""What a running driver shows of itself to those who watch over hosts."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

from vmdriver import __version__
from vmdriver.app import Driver
from vmdriver.errors import DriverError
from vmdriver.host import facts
from vmdriver.host.threads import alone
from vmdriver.storage import disk_use
from vmdriver.telemetry import seen
from vmdriver.telemetry.last_seen import LastSeen
from vmdriver.telemetry.machines import Usages
from vmdriver.telemetry.seen import Value
from vmdriver.telemetry.telemetry import Telemetry
from vmdriver.telemetry.use import MachineUse

_DISK_EVERY_S = 60.0


class Watching:
    """Looks at a driver whose sandboxes are known. A disk or a QEMU that hangs, or takes long,
    holds up none of the other figures.
    """

    def __init__(self, driver: Driver, use: MachineUse) -> None:
        self._driver, self._use = driver, use
        self._usages = Usages()
        self._images = LastSeen[Sequence[Value]]("images", ())
        self._disk = LastSeen[Sequence[Value]]("disk", (), every_s=_DISK_EVERY_S)

    async def look(self) -> Sequence[Value]:
        """Everything there is to show now."""
        machines = self._driver.config.machines
        limits = machines.max_sandboxes, machines.max_committed_mem_mib
        images, used, disk = await asyncio.gather(
            self._images.look(self._of_images),
            self._use.look(),
            self._disk.look(self._of_disk),
        )
        core = seen.of_core(self._driver.core, *limits)
        host = seen.of_host(facts.memory_mib() * 2**20, facts.available_memory_bytes())
        return [*core, *host, *images, *self._usages.note(used.of), *disk]

    async def _of_images(self) -> Sequence[Value]:
        try:
            return seen.of_images(await self._driver.images.known())
        except DriverError:
            return ()  # its folder cannot be read: the disk's own figures say it

    async def _of_disk(self) -> Sequence[Value]:
        return await alone("disk-use", _disk_values, self._driver.layout.root)


def _disk_values(root: Path) -> Sequence[Value]:
    disk = shutil.disk_usage(root)
    return seen.of_disk(disk_use.by_folder(root), disk.free, disk.total)


def watched(driver: Driver, use: MachineUse) -> Telemetry | None:
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
    telemetry.start(Watching(driver, use).look)
    return telemetry
