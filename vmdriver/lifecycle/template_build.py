"""Boots a guest up to its barrier and keeps its memory.

Nothing of it is in a ledger: every host object carries a mark that belongs to no sandbox, so
that the next driver's sweep removes what a killed one had made.
"""

from __future__ import annotations

import asyncio
import logging

from vmdriver.errors import TimedOut
from vmdriver.lifecycle import planner
from vmdriver.lifecycle.launcher import Launcher
from vmdriver.lifecycle.manifest import describe
from vmdriver.lifecycle.memory_ports import STATE_BYTES
from vmdriver.lifecycle.ports import Taken
from vmdriver.lifecycle.settings import Settings
from vmdriver.lifecycle.steps import Ports
from vmdriver.lifecycle.sweep import tried
from vmdriver.model import ids
from vmdriver.model.memory_image import MemoryManifest
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan

_log = logging.getLogger(__name__)
_POLL_S = 0.05


class TemplateBuild:
    """One build. Leaves the template, or nothing."""

    def __init__(self, ports: Ports, settings: Settings, launcher: Launcher) -> None:
        self._ports = ports
        self._settings = settings
        self._launcher = launcher

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

    async def run(
        self, key: str, plan: LaunchPlan, workspace: str, target: str
    ) -> MemoryManifest:
        """Build it. DriverError; cancellable; nothing is left over then, room and address
        that were set aside for it among it.
        """
        store, owner = self._ports.memory_store, f"template-{key}"
        part = f"{target}.part"
        needed = plan.memory_mib * 2**20 + STATE_BYTES
        try:
            taken = await self._ports.network.taken()
            nobody = self._plan(key, plan, part, owner, taken)
            memory = await store.begin(part, needed)
            return await self._on_layer(nobody, workspace, part, target, memory)
        finally:
            self._launcher.pool.free(owner)
            try:
                await tried(_log, store.remove(part))
            finally:
                await store.end(part)

    async def _on_layer(
        self, plan: LaunchPlan, workspace: str, part: str, target: str, memory: str
    ) -> MemoryManifest:
        layer = plan.disk("root").path
        self._launcher.building.add(layer)
        try:
            return await self._run(plan, workspace, part, target, memory)
        except BaseException:
            await tried(_log, self._ports.disks.remove(layer))
            raise
        finally:
            try:
                await self._end_machine(plan)
            finally:
                self._launcher.building.discard(layer)

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

    async def _end_machine(self, plan: LaunchPlan) -> None:
        ports, tap = self._ports, plan.network.lease.tap
        mark = ids.mark(self._settings.instance, plan.sandbox_id)
        await tried(_log, ports.hypervisor.destroy(plan.domain))
        await tried(_log, ports.network.remove_rules(tap))
        await tried(_log, ports.network.remove_tap(tap, mark))
