"""Boots a guest up to its barrier and keeps its memory.

Its ledger is in memory: every host object carries a mark that belongs to no sandbox, so that the
next driver's sweep removes what a killed one had made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from vmdriver.errors import TimedOut
from vmdriver.host import facts
from vmdriver.lifecycle.engine.resource import FILES, OVERLAY
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.resources import AddressLease, MachineSource, Part, take
from vmdriver.lifecycle.launch.translation import bounded
from vmdriver.lifecycle.launch.users import UserLease
from vmdriver.lifecycle.launch.wall import Wall
from vmdriver.lifecycle.launch.walled import walled
from vmdriver.lifecycle.memory.manifest import describe
from vmdriver.lifecycle.memory.resources import CheckpointPart, image_bytes
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.leftovers import Leftovers, Unowned
from vmdriver.model.checkpoint import MemoryManifest
from vmdriver.model.ids import mark
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan, Lease
from vmdriver.model.record import CONSOLE_FOLLOWS, NO_BARRIER

_POLL_S = 0.05


def owner_of(key: str) -> str:
    """Who a build of that template is in marks and leases."""
    return f"template-{key}"


class TemplateMaker:
    """Leaves a template, or nothing. `parts`: what a machine that comes up acquires."""

    def __init__(
        self,
        *,
        ports: Ports,
        settings: Settings,
        paths: Paths,
        lease: AddressLease,
        user: UserLease,
        wall: Wall,
        parts: Sequence[Part],
        budget: MemoryBudget,
        leftovers: Leftovers,
    ) -> None:
        self._ports, self._settings, self._paths = ports, settings, paths
        self._lease, self._user, self._wall = lease, user, wall
        self._parts = parts
        self._budget, self._leftovers = budget, leftovers
        self.layers: set[str] = set()
        """Of templates that are being built."""

    def tell(self, short: Callable[[], Awaitable[bool]]) -> None:
        """From now on call `short` when a sandbox needs what a build holds."""
        self._user.pool.ways.tell(short)
        self._lease.addresses.ways.tell(short)

    @property
    def group(self) -> int:
        """Whose members may read what it leaves."""
        return self._user.pool.uids.shared_gid

    def _plan(
        self, one: Unowned, plan: LaunchPlan, part: str, lease: Lease, layer: str
    ) -> LaunchPlan:
        """The machine of a sandbox's plan, unowned: no environment, no drop-ins, an
        address that it never uses.
        """
        network = plan.network.model_copy(
            update={
                "lease": lease,
                "egress": "none",
                "egress_allow": (),
                "egress_only": None,
                "dns": (),
                "search": (),
                "mbit_s": None,
                "ipv6": None,
                "no_ipv6": "",
            }
        )
        nobody = planner.as_unowned(plan, self._settings.instance, one.owner, part)
        nobody = nobody.model_copy(
            update={
                "network": network,
                "environment": {},
                "environment_by": {},
                "drop_ins": (),
                "drop_in_environment": {},
                "cpu_quota_millis": None,
                "disk_iops": None,
                "disk_mib_s": None,
                "hostname": "template",
                "hosts": (),
                "template": None,
            }
        )
        nobody = bounded(walled(nobody, self._settings))
        return planner.on_layers(nobody, (layer,), plan.disk("root").backing[-1])

    def has_room(self, plan: LaunchPlan) -> bool:
        """Whether there is memory for its machine now."""
        committed = self._budget.committed_mib()
        most = self._settings.max_committed_memory_mib
        within = committed + plan.memory_mib <= most
        return within and facts.available_memory_bytes() > plan.memory_mib * 2**20

    async def run(
        self, key: str, plan: LaunchPlan, workspace: str, target: str
    ) -> MemoryManifest:
        """Build it. DriverError; cancellable; nothing is left over then, room and address
        that were set aside for it among it, but for what cannot be given back yet.
        """
        # Not in a folder of its machine's: others stand on it when that is gone.
        layer = self._paths.new_layer(owner_of(key), None)
        building = self.layers
        building.add(layer)
        one = Unowned(
            owner_of(key), plan.memory_mib, given_back=lambda: building.discard(layer)
        )
        try:
            return await self._run(one, plan, workspace, target, layer)
        finally:
            await self._leftovers.give_back(one)

    async def _run(
        self, one: Unowned, plan: LaunchPlan, workspace: str, target: str, layer: str
    ) -> MemoryManifest:
        ports, part, ledger = self._ports, f"{target}.part", one.ledger
        lease = await self._lease.acquire(one.owner, ledger, modest=True)
        user = await self._user.acquire(one.owner, ledger, modest=True)
        plan = planner.with_user(self._plan(one, plan, part, lease, layer), user)
        plan = await self._wall.around(plan)
        image = CheckpointPart(ports.memory_store)
        memory = await image.acquire(ledger, part, image_bytes(plan))
        write = partial(ports.launch_files.write_for_template, plan)
        owner = mark(self._settings.instance, one.owner)
        source = MachineSource(plan, owner, instead={FILES: write})
        await take(ledger, self._parts, source)
        await self._wait(plan)
        await ports.memory.pause(plan.domain)
        captured = await ports.memory.capture(plan.domain, memory, plan.memory_mib)
        await ports.hypervisor.destroy(plan.domain)
        await ports.disks.share_layer(layer, user)
        parts = await ports.memory_store.write_parts(part, captured)
        manifest = await describe(
            ports, "template", plan, captured, parts, workspace=workspace
        )
        await ports.memory_store.share(part, user)
        try:
            await ports.memory_store.publish(part, target, manifest)
        except BaseException:
            # It may have its name already, only not durably.
            await self._leftovers.remove_files(target)
            raise
        await ledger.hand_over(OVERLAY)
        return manifest

    async def _wait(self, plan: LaunchPlan) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._settings.boot_timeout_s
        status = plan.disk("status").path
        while self._ports.disks.report_now(status).phase != "waiting":
            report = self._ports.disks.report_now(status)
            state = await self._ports.hypervisor.observe(plan.domain)
            if state is not DomainState.RUNNING or report.phase:
                tail = await self._ports.disks.console_tail(plan.console, 300)
                raise TimedOut(
                    f"{NO_BARRIER} {report.reason}",
                    detail=f"{CONSOLE_FOLLOWS}\n{tail}",
                )
            if loop.time() > deadline:
                raise TimedOut("the template's guest did not reach its barrier in time")
            await asyncio.sleep(_POLL_S)
