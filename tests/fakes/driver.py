"""A whole driver on a fake host."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from tests.fakes.accelerator import FakeAccelerator
from tests.fakes.disks import FakeDisks
from tests.fakes.gateway_service import FakeGatewayService
from tests.fakes.guest import FakeGuest
from tests.fakes.host_devices import FakeHostDevices
from tests.fakes.host_folders import FakeHostFolders
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.images import FakeImages
from tests.fakes.inside import Inside, is_at_work
from tests.fakes.journal import FakeJournal
from tests.fakes.launch_files import FakeLaunchFiles
from tests.fakes.machine_users import FakeMachineUsers
from tests.fakes.memory import FakeMemory
from tests.fakes.memory_store import FakeMemoryStore
from tests.fakes.network import FakeNetwork
from tests.fakes.network_guard import FakeNetworkGuard
from tests.fakes.paths import FakePaths
from tests.fakes.records import FakeRecords
from tests.fakes.settings import SETTINGS
from tests.fakes.supervisor_disks import FakeSupervisorDisks
from tests.fakes.volume_copies import FakeVolumeCopies
from tests.fakes.volumes import FakeVolumes
from tests.fakes.wall_source import FakeWallSource
from tests.fakes.world import World
from vmdriver.extensions.loader import participants
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.ledger import Scope
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.extending.participants import Registered
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.users import UserPool
from vmdriver.lifecycle.ports.host import Guard, JournalOpener, no_crash_point
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.machine_uids import MachineUids
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import Failure, SandboxRecord
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.usage import Usage
from vmdriver.model.wishes import Wish
from vmdriver.storage.layout import Layout
from vmdriver.storage.sandboxes.journal import FileJournal
from vmdriver.storage.sandboxes.records import RecordStore
from vmdriver.telemetry.pictures import Pictures
from vmdriver.telemetry.use import MachineUse
from vmdriver.wiring import Core, Installed

RETRY_S = 0.05
"""Until what is unowned is given back for the second time."""
PATIENCE_S = 20.0
"""With what takes milliseconds, on a busy machine."""
UIDS = MachineUids(250000, 250999)
FINAL = {
    Intent.RUNNING: {Phase.RUNNING, Phase.FAILED},
    Intent.STOPPED: {Phase.STOPPED},
    Intent.SUSPENDED: {Phase.SUSPENDED, Phase.STOPPED},
    Intent.DELETED: set(),
}
"""Phases in which a sandbox stays, by what was asked."""


def spec(sandbox_id: str = "s1", **changes: Any) -> SandboxSpec:
    return SandboxSpec(
        **{
            "id": sandbox_id,
            "name": f"name-{sandbox_id}",
            "image": "example.org/image:1",
            **changes,
        }
    )


def kept_on_disk(layout: Layout, files: Threads) -> dict[str, Any]:
    """Options of a FakeDriver whose records and ledgers are real, and written and synced by those threads."""
    return {
        "adapters": {"records": RecordStore(layout, files)},
        "journals": lambda name: FileJournal(layout.sandbox(name).ledger, files),
    }


class FakeDriver:
    """One driver process on a World. Make another on the same World to see what a restart does."""

    def __init__(
        self,
        world: World,
        crash_point: Guard = no_crash_point,
        settings: Settings = SETTINGS,
        extensions: Sequence[Registered] = (),
        extension_configs: Mapping[str, Mapping[str, Any]] | None = None,
        may_configure: frozenset[str] = frozenset(),
        watch_limit: int = 1024,
        adapters: Mapping[str, Any] | None = None,
        paths: Paths | None = None,
        templates_directory: str = "templates",
        warm_directory: str = "warm",
        uids: MachineUids = UIDS,
        journals: JournalOpener | None = None,
        usage_of: Callable[[Mapping[str, str]], Mapping[str, Usage]] = lambda _: {},
    ) -> None:
        """`adapters`: real ones in place of fakes, by the name of their port; `journals`: of ledgers, too.
        `usage_of`: what machines use, by domain.
        """
        self.world = world
        world.dead = False
        for domain in set(world.ended):
            world.notice(domain)  # a libvirt that begins looks at every machine
        instance = settings.instance
        self.hypervisor = FakeHypervisor(world, instance, crash_point)
        self.memory, self.guest = FakeMemory(world, crash_point), FakeGuest(world)
        self.memory_store = FakeMemoryStore(world, crash_point)
        network = FakeNetwork(world, instance)
        self.network_guard = FakeNetworkGuard(world, network)
        fakes = Ports(
            self.hypervisor,
            network,
            FakeDisks(world),
            FakeLaunchFiles(world),
            FakeSupervisorDisks(world),
            FakeImages(world),
            FakeRecords(world, crash_point),
            self.memory,
            self.guest,
            self.memory_store,
            self.network_guard,
            FakeMachineUsers(world),
            FakeGatewayService(world),
            FakeHostDevices(world, crash_point),
            FakeVolumes(world, crash_point),
            FakeHostFolders(world, instance, crash_point),
            FakeVolumeCopies(world),
        )
        ports = dataclasses.replace(fakes, **(adapters or {}))
        self._files = Threads("test", 1)
        self.wall = FakeWallSource()
        self.core = Core(
            ports=ports,
            settings=settings,
            journals=journals or (lambda sandbox_id: FakeJournal(world, sandbox_id)),
            accelerator=FakeAccelerator(world.accelerator),
            wall_sources=(self.wall,),
            paths=paths or FakePaths(),
            files=self._files,
            addresses=AddressPool(instance, settings.address_pool),
            users=UserPool(uids),
            installed=Installed(
                participants(extensions), extension_configs or {}, may_configure
            ),
            templates_directory=templates_directory,
            warm_directory=warm_directory,
            crash_point=crash_point,
            watch_limit=watch_limit,
            retry_s=RETRY_S,
        )
        self.broadcaster, self.manager = self.core.broadcaster, self.core.manager
        self.pictures = Pictures(
            core=self.core,
            use=MachineUse(self.core.sandboxes, usage_of),
            stored_of=lambda layers: (dict.fromkeys(layers, 0), 0),
            sandbox_limit=1000,
            memory_limit_mib=settings.max_committed_memory_mib,
        )
        self.leftovers = self.core.leftovers
        self.inside = Inside(self.core, ports)

    async def settled(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until every sandbox is where it stays."""
        async with asyncio.timeout(timeout_s):
            for worker in list(self.core.sandboxes.workers.values()):
                await worker.sandbox.until(
                    lambda record: record.phase in FINAL[record.intent], timeout_s
                )
                while (
                    worker.sandbox.ledger.held(Scope.CAPTURE)
                    or worker.sandbox.record.reverting
                ) and not worker.sandbox.gone:
                    await asyncio.sleep(0.001)
            for _ in range(20):
                await asyncio.sleep(0)
            while any(is_at_work(w) for w in self.core.sandboxes.workers.values()):
                await asyncio.sleep(0.001)

    # --- what tests ask of it; they know nothing else of how it is made inside

    def sandboxes(self) -> list[str]:
        """Ids of all that it knows, refused creates that are being given back among them."""
        return list(self.core.sandboxes.workers)

    def knows(self, sandbox_id: str = "s1") -> bool:
        return sandbox_id in self.core.sandboxes.workers

    def worker(self, sandbox_id: str = "s1") -> Worker:
        """What an operator's calls take, known by its id alone; an operator finds it by its name."""
        return self.core.sandboxes.workers[sandbox_id]

    def records(self) -> list[SandboxRecord]:
        return [
            worker.sandbox.record for worker in self.core.sandboxes.workers.values()
        ]

    def record(self, sandbox_id: str = "s1") -> SandboxRecord:
        return self.worker(sandbox_id).sandbox.record

    def phase(self, sandbox_id: str = "s1") -> Phase:
        return self.record(sandbox_id).phase

    def plan(self, sandbox_id: str = "s1") -> LaunchPlan:
        """It must have one."""
        plan = self.record(sandbox_id).plan
        assert plan is not None, f"{sandbox_id} has no plan"
        return plan

    def failure(self, sandbox_id: str = "s1") -> Failure:
        """It must have failed."""
        failure = self.record(sandbox_id).failure
        assert failure is not None, f"{sandbox_id} has not failed"
        return failure

    def held(self, sandbox_id: str = "s1") -> set[str]:
        """Keys of what its ledger holds."""
        ledger = self.worker(sandbox_id).sandbox.ledger
        return {held.key for held in ledger.held(None)}

    def trouble(self, sandbox_id: str = "s1") -> str:
        """The error that is being retried."""
        return self.worker(sandbox_id).sandbox.trouble

    def owed(self, sandbox_id: str = "s1") -> str:
        """What extensions could not give back."""
        return self.worker(sandbox_id).sandbox.owed

    def hint(self, sandbox_id: str = "s1") -> None:
        """Something may have changed: it looks now, not after the next pause."""
        self.worker(sandbox_id).hint()

    def tell(self, sandbox_id: str, reason: str, message: str) -> None:
        """A platform event of it."""
        self.worker(sandbox_id).sandbox.tell(reason, message)

    def shown(self) -> tuple[str, str, str]:
        """The first one's condition: TYPE=STATUS, reason, message."""
        told = self.manager.statuses()[0].conditions[0]
        return f"{told.type}={told.status}", told.reason, told.message

    # These look the sandbox up when they are called, not when they are awaited.
    def until(
        self,
        sandbox_id: str,
        reached: Callable[[SandboxRecord], bool],
        timeout_s: float = PATIENCE_S,
    ) -> Awaitable[None]:
        """Wait until its record is so, or it is gone."""
        return self.worker(sandbox_id).sandbox.until(reached, timeout_s)

    def in_phase(self, sandbox_id: str, phase: Phase) -> Awaitable[None]:
        return self.until(sandbox_id, lambda record: record.phase is phase)

    def gone(self, sandbox_id: str = "s1") -> Awaitable[None]:
        """Wait until it is."""
        return self.until(sandbox_id, lambda _: False)

    async def troubled(self, sandbox_id: str = "s1") -> None:
        """Wait until something of it has failed and is being retried."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.trouble(sandbox_id):
                await asyncio.sleep(0.001)

    def wish(self, sandbox_id: str, wish: Wish) -> Awaitable[None]:
        """Have it stored, and do not wait until it is so."""
        return self.worker(sandbox_id).wish(wish)

    # --- its end

    async def close(self) -> None:
        await self.manager.close()
        self._files.close()

    async def kill(self) -> None:
        """As SIGKILL: nothing of this process has any effect from now on."""
        self.world.dead = True
        ended: set[asyncio.Task[Any]] = set()
        # Who is cut off while it gives something back begins a task that tries again later.
        while tasks := set(self.inside.tasks()) - ended:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            ended |= tasks
        self._files.close()
