"""Boots a guest up to its barrier and keeps its memory.

Nothing of it is in a ledger: every host object carries a mark that belongs to no sandbox, so
that the next driver's sweep removes what a killed one had made.
"""

from __future__ import annotations

import asyncio

from vmdriver.errors import TimedOut
from vmdriver.host import facts
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.launcher import Launcher
from vmdriver.lifecycle.memory.manifest import describe
from vmdriver.lifecycle.ports.host import Taken
from vmdriver.lifecycle.ports.memory import STATE_BYTES
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.leftovers import Belongings, Leftovers
from vmdriver.model import ids
from vmdriver.model.memory_image import MemoryManifest
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan

_POLL_S = 0.05


def owner_of(key: str) -> str:
    """Who a build of that template is in marks and leases."""
    return f"template-{key}"


class TemplateBuild:
    """One build. Leaves the template, or nothing."""

    def __init__(
        self,
        ports: Ports,
        settings: Settings,
        launcher: Launcher,
        leftovers: Leftovers,
    ) -> None:
        self._ports = ports
        self._settings = settings
        self._launcher = launcher
        self._leftovers = leftovers

    def _plan(
        self, key: str, plan: LaunchPlan, part: str, owner: str, taken: Taken
    ) -> LaunchPlan:
        """The machine of a sandbox's plan, as nobody's: no environment, no drop-ins, an
        address that it never uses.
        """
        lease = self._launcher.pool.take(owner, taken)
        network = plan.network.model_copy(
            update={"lease": lease, "egress": "none", "dns": ()}
        )
        nobody = planner.as_nobodys(plan, self._settings.instance, owner, part)
        nobody = nobody.model_copy(
            update={
                "network": network,
                "environment": {},
                "drop_ins": (),
                "drop_in_environment": {},
                "cpu_quota_millis": None,
                "hostname": "template",
                "hosts": (),
                "template": None,
            }
        )
        layer = self._launcher.places.new_layer(f"template-{key}")
        return planner.on_layers(nobody, (layer,), plan.disk("root").backing[-1])

    def has_room(self, plan: LaunchPlan) -> bool:
        """Whether there is memory for its machine now."""
        committed = self._launcher.budget.committed_mib()
        most = self._settings.max_committed_memory_mib
        within = committed + plan.memory_mib <= most
        return within and facts.available_memory_bytes() > plan.memory_mib * 2**20

    async def run(
        self, key: str, plan: LaunchPlan, workspace: str, target: str
    ) -> MemoryManifest:
        """Build it. DriverError; cancellable; nothing is left over then, room and address
        that were set aside for it among it, but for what cannot be given back yet.
        """
        owner, part = owner_of(key), f"{target}.part"
        taken = await self._ports.network.taken()
        try:
            nobody = self._plan(key, plan, part, owner, taken)
        except BaseException:
            self._launcher.pool.free(owner)
            raise
        layer, building = nobody.disk("root").path, self._launcher.building
        building.add(layer)
        made_for_nothing = layer
        try:
            needed = plan.memory_mib * 2**20 + STATE_BYTES
            memory = await self._ports.memory_store.begin(part, needed)
            manifest = await self._run(nobody, workspace, part, target, memory)
            made_for_nothing = ""
            return manifest
        finally:
            leaving = Belongings(
                owner,
                nobody,
                (part,),
                made_for_nothing,
                given_back=lambda: building.discard(layer),
            )
            await self._leftovers.give_back(leaving)

    async def _run(
        self, plan: LaunchPlan, workspace: str, part: str, target: str, memory: str
    ) -> MemoryManifest:
        ports, mark = self._ports, ids.mark(self._settings.instance, plan.sandbox_id)
        await ports.disks.create_overlay(plan.disk("root"))
        await ports.disks.write_barrier_files(plan)
        await ports.network.make_tap(plan.network, mark)
        await ports.network.load_rules(plan.network, mark)
        await ports.hypervisor.start(plan, mark)
        await self._wait(plan)
        await ports.memory.pause(plan.domain)
        captured = await ports.memory.capture(plan.domain, memory, plan.memory_mib)
        await ports.hypervisor.destroy(plan.domain)
        await ports.disks.freeze_layer(plan.disk("root").path)
        parts = await ports.memory_store.write_parts(part, captured)
        manifest = await describe(
            ports, "template", plan, captured, parts, workspace=workspace
        )
        await ports.memory_store.lend(part, lent=True)
        await ports.memory_store.publish(part, target, manifest)
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
                    f"the template's guest ended before its barrier: {report.reason}",
                    detail=tail,
                )
            if loop.time() > deadline:
                raise TimedOut("the template's guest did not reach its barrier in time")
            await asyncio.sleep(_POLL_S)
