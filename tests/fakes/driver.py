"""A whole driver on a fake host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.fakes.accelerator import FakeAccelerator
from tests.fakes.disks import FakeDisks
from tests.fakes.guest import FakeGuest
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.image_cache import FakeImages
from tests.fakes.memory import FakeMemory
from tests.fakes.memory_store import FakeMemoryStore
from tests.fakes.network import FakeNetwork
from tests.fakes.records import FakeJournal, FakeRecords
from tests.fakes.world import World
from vmdriver.host.threads import Pool
from vmdriver.lifecycle.control.manager import Manager
from vmdriver.lifecycle.engine.broadcast import Hub
from vmdriver.lifecycle.engine.hold import Shared
from vmdriver.lifecycle.engine.ledger import Scope, replay
from vmdriver.lifecycle.engine.worker import SandboxWorker
from vmdriver.lifecycle.extending.activation import Registered
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.launcher import Launcher
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.resources import Undoer
from vmdriver.lifecycle.launch.supervisor import Supervisor
from vmdriver.lifecycle.ports.host import Guard, no_checkpoint
from vmdriver.lifecycle.ports.paths import BootChoice, SandboxPaths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.leftovers import Leftovers
from vmdriver.lifecycle.templates.pool import WarmPool
from vmdriver.lifecycle.templates.template import Templates
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord, layers_of
from vmdriver.model.spec import SandboxSpec

SETTINGS = Settings(
    instance="test",
    state_dir=Path("/state"),
    endpoint="http://127.0.0.1:17670",
    supervisor=Path("/supervisor"),
    recheck_s=0.5,
)
RETRY_S = 0.05
"""Until what is nobody's is given back for the second time."""
FINAL = {
    Intent.RUNNING: {Phase.RUNNING, Phase.FAILED},
    Intent.STOPPED: {Phase.STOPPED},
    Intent.SUSPENDED: {Phase.SUSPENDED, Phase.STOPPED},
    Intent.DELETED: set(),
}
"""Phases in which a sandbox stays, by what was asked."""


class FakePlaces:
    layers = 0

    def boot(self) -> BootChoice:
        return BootChoice("/kernel", "/initramfs", "boot")

    def paths(self, sandbox_id: str) -> SandboxPaths:
        return SandboxPaths(
            *(
                f"{sandbox_id}/{name}"
                for name in (
                    *("seed.img", "status.img", "console.log", "suspended"),
                    *(
                        "mapped",
                        "not-restored",
                        "snapshots",
                        "capture.part",
                        "load.image",
                    ),
                )
            )
        )

    def new_layer(self, sandbox_id: str) -> str:
        self.layers += 1
        return f"layers/{sandbox_id}.{self.layers}.{id(self)}.qcow2"


def spec(sandbox_id: str = "s1", **changes: Any) -> SandboxSpec:
    return SandboxSpec(
        **{
            "id": sandbox_id,
            "name": f"name-{sandbox_id}",
            "image": "example.org/image:1",
            **changes,
        }
    )


class FakeDriver:
    """One driver process on a World. Make another on the same World to see what a restart does."""

    def __init__(
        self,
        world: World,
        checkpoint: Guard = no_checkpoint,
        settings: Settings = SETTINGS,
        extensions: Sequence[Registered] = (),
        extension_configs: Mapping[str, Mapping[str, Any]] | None = None,
        may_configure: frozenset[str] = frozenset(),
        watch_limit: int = 1024,
    ) -> None:
        self.world = world
        world.dead = False
        for domain in set(world.ended):
            world.notice(domain)  # a libvirt that begins looks at every machine
        instance = settings.instance
        self.hypervisor = FakeHypervisor(world, instance, checkpoint)
        self.memory = FakeMemory(world, checkpoint)
        self.guest = FakeGuest(world)
        self.memory_store = FakeMemoryStore(world, checkpoint)
        records = FakeRecords(world, checkpoint)
        ports = Ports(
            self.hypervisor,
            FakeNetwork(world, instance),
            FakeDisks(world),
            FakeImages(world),
            records,
            self.memory,
            self.guest,
            self.memory_store,
        )
        self.hub = Hub(lambda: self.manager.snapshots(), watch_limit)
        pool = self.pool = AddressPool(instance, settings.address_pool)
        runner = ExtensionRunner(
            extensions,
            extension_configs or {},
            ports.disks.extension_directory,
            may_configure,
        )
        self._files = Pool("test", 1)
        leftovers = self.leftovers = Leftovers(ports, instance, pool, RETRY_S)
        launcher = Launcher(
            ports,
            settings,
            runner,
            FakeAccelerator(),
            FakePlaces(),
            pool,
            self._files,
            Supervisor(settings, ports.images, ports.disks),
            MemoryBudget(
                lambda: self.manager.records(), settings, leftovers.memory_mib
            ),
        )

        def shared(manager: Manager) -> Shared:
            templates = Templates(
                ports,
                settings,
                launcher,
                manager.needing_layers,
                "templates",
                leftovers,
            )
            warm_pool = WarmPool(
                ports, settings, launcher, templates, "warm", leftovers
            )
            templates.on_ready, templates.on_gone = warm_pool.refill, warm_pool.drop
            return Shared(
                ports,
                settings,
                launcher,
                runner,
                Undoer(ports, pool, runner.undo, manager.layers_of_others),
                self.hub,
                manager.forget,
                manager.layers_of_others,
                templates,
                warm_pool,
                manager.host_snapshots,
            )

        self.manager = Manager(
            shared,
            lambda sandbox_id: FakeJournal(world, sandbox_id),
            settings,
            checkpoint,
        )

    async def settled(self, timeout_s: float = 5.0) -> None:
        """Wait until every sandbox is where it stays."""
        async with asyncio.timeout(timeout_s):
            for worker in list(self.manager.workers.values()):
                await worker.until(
                    lambda record: record.phase in FINAL[record.intent], timeout_s
                )
                while (
                    worker.ledger.held(Scope.CAPTURE) or worker.record.reverting
                ) and not worker.gone:
                    await asyncio.sleep(0.001)
            for _ in range(20):
                await asyncio.sleep(0)
            while any(_is_at_work(w) for w in self.manager.workers.values()):
                await asyncio.sleep(0.001)

    def phase(self, sandbox_id: str = "s1") -> Phase:
        return self.manager.workers[sandbox_id].record.phase

    async def close(self) -> None:
        await self.manager.close()
        self._files.close()

    async def kill(self) -> None:
        """As SIGKILL: nothing of this process has any effect from now on."""
        self.world.dead = True
        tasks = [w._task for w in self.manager.workers.values() if w._task is not None]
        tasks += [
            w.underway.task
            for w in self.manager.workers.values()
            if w.underway.task is not None
        ]
        upkeep = (self.manager.housekeeping.task, self.manager.images.task)
        tasks += [task for task in upkeep if task is not None]
        tasks += self.leftovers._tasks.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._files.close()


def _is_at_work(worker: SandboxWorker) -> bool:
    """Its loop is looking or doing something, or about to."""
    if worker._task is None or worker._task.done():
        return False
    return worker.underway.task is not None or worker._wake.is_set()


def held_objects(world: World) -> set[str]:
    """What the ledgers on disk claim, in the words of World.objects."""
    claimed = {
        f"file {layer}"
        for text in world.records.values()
        for layer in layers_of(SandboxRecord.model_validate_json(text))
    }
    for journal in world.journals.values():
        import json

        for entry in replay([json.loads(line) for line in journal]).values():
            data = entry.data
            claimed |= {
                "machine": {f"machine {data.get('domain')}"},
                "tap": {f"tap {data.get('tap')}"},
                "firewall": {f"firewall {data.get('tap')}"},
                "launch-files": {f"file {data.get('seed')}"},
                "overlay": {f"file {data.get('path')}"},
                "capture:layer": {f"file {data.get('path')}"},
            }.get(entry.key, set())
    return claimed
