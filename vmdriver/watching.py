"""What a running driver shows of itself to those who watch over hosts."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence

from vmdriver import __version__
from vmdriver.app import Driver
from vmdriver.errors import DriverError
from vmdriver.hypervisor.qemu_process import run_directory
from vmdriver.hypervisor.usage import HostUsage
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.storage import disk_use
from vmdriver.telemetry import seen
from vmdriver.telemetry.machines import Usages, Whose
from vmdriver.telemetry.seen import Value
from vmdriver.telemetry.telemetry import Telemetry

_DISK_EVERY_S = 60.0


class Watching:
    """Looks at a driver whose sandboxes are known."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._usage = HostUsage(run_directory(driver.connection.uri))
        self._usages = Usages()
        self._disk: Sequence[Value] = ()
        self._disk_at = -_DISK_EVERY_S

    async def look(self) -> Sequence[Value]:
        """Everything there is to show now."""
        driver, machines = self._driver, self._driver.config.machines
        core = driver.core
        limits = machines.max_sandboxes, machines.max_committed_mem_mib
        values = seen.of_core(core, *limits)
        try:
            values += seen.of_images(await driver.images.known())
        except DriverError:
            values += []  # its folder cannot be read: the disk's own figures say it
        return [*values, *await self._of_machines(), *await self._of_disk()]

    async def _of_machines(self) -> list[Value]:
        taps, whose = {}, {}
        for worker in self._driver.core.sandboxes.accepted():
            record = worker.sandbox.record
            if record.plan is None or worker.sandbox.ledger.get(MACHINE) is None:
                continue
            domain = record.plan.domain
            taps[domain] = record.plan.network.lease.tap
            whose[domain] = Whose(record.id, record.spec.workspace)
        found = await asyncio.to_thread(self._usage.of, taps)
        return self._usages.note({whose[domain]: use for domain, use in found.items()})

    async def _of_disk(self) -> Sequence[Value]:
        if time.monotonic() - self._disk_at >= _DISK_EVERY_S:
            self._disk_at = time.monotonic()
            root = self._driver.layout.root
            used = await asyncio.to_thread(disk_use.by_folder, root)
            self._disk = seen.of_disk(used, shutil.disk_usage(root).free)
        return self._disk


def watched(driver: Driver) -> Telemetry | None:
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
    telemetry.start(Watching(driver).look)
    return telemetry
