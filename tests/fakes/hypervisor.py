"""Machines in memory, started in the half steps that libvirt takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.fakes.world import World
from vmdriver.errors import HostError, NotFound
from vmdriver.lifecycle.ports.host import (
    Found,
    GuestReport,
    no_crash_point,
)
from vmdriver.model.checkpoint import Versions
from vmdriver.model.ids import parse_mark
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import Accelerator, LaunchPlan, Processor


class FakeHypervisor:
    def __init__(
        self,
        world: World,
        instance: str,
        crash_point: Callable[[str], Awaitable[None]] = no_crash_point,
    ) -> None:
        self._world, self._instance, self._crash_point = world, instance, crash_point
        self.hint: Callable[[str], None] = lambda _name: None

    async def start(self, plan: LaunchPlan, mark: str) -> None:
        world = self._world
        world.act(f"start {plan.domain}")
        await world.hanging.passed(f"start {plan.domain}", plan.domain)
        if world.domains.get(plan.domain) is DomainState.RUNNING:
            raise HostError("two machines on one disk")
        world.check_network(plan)
        needed = {plan.disk("root").path}
        if "/template-" not in mark:
            needed.add(plan.disk("seed").path)
        assert needed <= world.files, "a machine without its disks"
        world.open_as_qemu(plan)
        world.run_as(plan)
        world.open_devices(plan)
        world.open_folders(plan)
        world.marks[plan.domain] = mark
        for half_way in (DomainState.OFF, DomainState.PAUSED):
            world.domains[plan.domain] = half_way
            await self._crash_point(f"machine:{half_way}")
            world.monitor(plan.domain)
        world.check_rules(plan.domain)
        world.domains[plan.domain] = DomainState.RUNNING
        world.root_layers[plan.domain] = plan.disk("root").path
        world.known_layers[plan.domain] = plan.disk("root").path
        world.ticks[plan.domain] = 0
        world.limits[plan.domain] = (plan.disk_iops, plan.disk_mib_s)
        world.starts[plan.domain] = world.starts.get(plan.domain, 0) + 1
        unowned = "/template-" in mark
        world.reports[plan.disk("status").path] = GuestReport(
            "waiting" if unowned else "started", stamps={"init": 0.001}
        )

    async def observe(self, domain: str) -> DomainState:
        # The real one has this deadline.
        await self._world.hanging.passed(f"look at {domain}", domain, 15.0)
        found = self._world.domains.get(domain, DomainState.ABSENT)
        if self._world.notice(domain):  # only the next look tells
            self.hint(domain)
        return found

    async def versions(self, accelerator: Accelerator) -> Versions:
        return Versions(hypervisor="7.2", libvirt="9.0", machine="pc-q35-7.2")

    async def processor(self, accelerator: Accelerator) -> Processor:
        return self._world.processor

    async def reassign(self, domain: str, mark: str) -> None:
        self._world.act(f"mark {domain}")
        self._world.marks[domain] = mark

    async def limit(self, plan: LaunchPlan) -> None:
        self._world.act(f"limit {plan.domain}")
        if plan.domain not in self._world.domains:
            raise NotFound(f"there is no {plan.domain}")
        self._world.limits[plan.domain] = (plan.disk_iops, plan.disk_mib_s)

    async def held_mib(self, domain: str) -> int | None:
        self._world.act(f"memory {domain}")
        return self._world.held_mib if domain in self._world.domains else None

    async def bound_logs(self) -> None:
        return None

    async def destroy(self, domain: str) -> None:
        self._world.act(f"destroy {domain}")
        self._world.hanging.give_up(domain)
        self._world.domains.pop(domain, None)
        self._world.volumes.qemu_ends(domain)
        self._world.ended.discard(domain)
        self._world.frozen.discard(domain)
        self._world.machine_users.pop(domain, None)
        self._world.group_users.pop(domain, None)
        self._world.readers_end(domain)
        self._world.root_layers.pop(domain, None)
        self._world.known_layers.pop(domain, None)
        self._world.limits.pop(domain, None)

    def abandon(self, domain: str) -> None:
        self._world.calls.append(f"abandon {domain}")
        self._world.hanging.give_up(domain)

    async def marked(self) -> list[Found]:
        for _ in range(50):  # a look at a real host takes time: others go on meanwhile
            await asyncio.sleep(0)
        found = [
            Found("domain", d, parse_mark(self._world.marks[d], self._instance) or "")
            for d in self._world.domains
        ]
        return [f for f in found if f.sandbox_id]

    def on_change(self, hint: Callable[[str], None]) -> None:
        self.hint = hint
