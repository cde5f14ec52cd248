"""Machines that can be paused, kept and loaded, with a guest whose workload ticks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

from tests.fakes.world import World
from vmdriver.errors import HostError, LoadRefused, NotFound
from vmdriver.lifecycle.ports.memory import Captured, SavedMachine, Streamed
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan

STALL_S = 0.5
"""After which a capture that does not move is given up."""


class FakeMemory:
    """Machines that can be paused, and a guest whose workload ticks when it runs."""

    def __init__(
        self, world: World, crash_point: Callable[[str], Awaitable[None]]
    ) -> None:
        self._world, self._crash_point = world, crash_point
        self.refuses = ""
        """What QEMU says of every state that it is to load."""
        self.can_seal = True
        self.stands_still = ""
        """Why the machines' QEMU cannot write their memory while they go on."""

    def _there(self, domain: str) -> None:
        self._world.monitor(domain)
        if self._world.domains.get(domain) not in {
            DomainState.RUNNING,
            DomainState.PAUSED,
            DomainState.STALLED,
        }:
            raise NotFound(f"no domain {domain}")

    def tick(self, domain: str) -> int:
        """The workload runs for a moment."""
        world = self._world
        assert world.domains[domain] is DomainState.RUNNING
        assert domain not in world.ended
        assert domain not in world.frozen
        assert world.root_layers[domain] in world.files, "it writes to a removed file"
        world.ticks[domain] += 1
        world.lived.append((domain, world.ticks[domain]))
        world.written[world.root_layers[domain]] = world.ticks[domain]
        return world.ticks[domain]

    async def seals(self) -> bool:
        return self.can_seal

    async def pause(self, domain: str) -> None:
        self._world.act(f"pause {domain}")
        await self._world.hanging.passed(f"pause {domain}", domain)
        self._there(domain)
        self._world.domains[domain] = DomainState.PAUSED

    async def go_on(self, domain: str) -> None:
        self._world.act(f"go on {domain}")
        await self._world.hanging.passed(f"go on {domain}", domain)
        self._world.monitor(domain)
        if self._world.domains.get(domain) is DomainState.PAUSED:
            self._world.writing.pop(domain, None)
            made_from = self._world.made_from.get(domain)
            assert made_from not in self._world.damaged, "it runs from damaged memory"
            self._world.check_rules(domain)
            self._world.domains[domain] = DomainState.RUNNING
        stalled = self._world.domains.get(domain) is DomainState.STALLED
        if stalled and self._world.free_bytes > 0:
            # Else the write that met the full disk meets it again.
            self._world.domains[domain] = DomainState.RUNNING

    async def capture(self, domain: str, memory: str, memory_mib: int) -> Captured:
        world = self._world
        world.act(f"capture {domain}")
        assert domain not in world.writing, "QEMU writes already"
        await self._world.hanging.passed(f"capture {domain}", domain, STALL_S)
        world.monitor(domain)
        assert world.domains[domain] is DomainState.PAUSED
        unowned = "/template-" in world.marks[domain]
        assert unowned or domain in world.frozen, (
            "captured with a workload that would go on at once"
        )
        await self._crash_point("capture:half-way")
        world.monitor(domain)
        world.memories[memory.rpartition("/")[0]] = world.ticks[domain]
        await self._crash_point("capture:complete")  # and nobody has noted it
        return Captured(b"state", "<domain/>", 4096, "pc-q35-7.2", "<cpu/>")

    async def stream(self, domain: str, target: str) -> Streamed:
        captured = await self.capture(domain, target, 0)
        return Streamed(target, captured.domain_xml)

    async def why_still(self, domain: str) -> str:
        self._world.act(f"ask {domain} how")
        await self._world.hanging.passed(f"ask {domain}", domain)
        self._there(domain)
        return self.stands_still

    async def begin_stream(self, domain: str, target: str) -> Streamed:
        world = self._world
        world.act(f"begin to write {domain}")
        await world.hanging.passed(f"begin to write {domain}", domain, STALL_S)
        world.monitor(domain)
        assert world.domains[domain] is DomainState.PAUSED
        assert domain in world.frozen, "its workload would go on before that is noted"
        assert domain not in world.writing, "two writings"
        world.half_written.add(target)
        world.memories[target.rpartition("/")[0]] = world.ticks[domain]
        world.writing[domain] = target
        await self._crash_point("meanwhile:protected")  # it stands still yet
        world.monitor(domain)
        try:
            world.act(f"{domain} goes on meanwhile")
        except HostError:
            world.writing.pop(domain)
            raise
        world.domains[domain] = DomainState.RUNNING
        await self._crash_point("meanwhile:begun")
        return Streamed(target, "<domain/>", meanwhile=True)

    async def end_stream(self, domain: str, streamed: Streamed) -> None:
        world = self._world
        await self._crash_point("meanwhile:half-way")
        try:
            world.act(f"end of writing {domain}")
            await world.hanging.passed(f"end of writing {domain}", domain, STALL_S)
            world.monitor(domain)
            assert world.writing[domain] == streamed.path
            world.half_written.discard(streamed.path)
        finally:
            if not world.dead:
                world.writing.pop(domain, None)
        await self._crash_point("meanwhile:complete")

    async def give_up_stream(self, domain: str) -> None:
        self._world.act(f"give up writing {domain}")
        await self._world.hanging.passed(f"give up writing {domain}", domain)
        self._world.writing.pop(domain, None)

    async def split(self, streamed: Streamed, memory: str, memory_mib: int) -> Captured:
        self._world.act(f"split {streamed.path}")
        assert streamed.path not in self._world.half_written, "half a memory"
        return Captured(b"state", "<domain/>", 4096, "pc-q35-7.2", "<cpu/>")

    async def load(
        self, plan: LaunchPlan, mark: str, saved: SavedMachine, scratch: str
    ) -> None:
        world = self._world
        world.act(f"load {plan.domain}")
        await world.hanging.passed(f"load {plan.domain}", plan.domain)
        assert world.domains.get(plan.domain) in {None, DomainState.OFF}, "two machines"
        world.check_network(plan)
        root = plan.disk("root")
        world.made_from[plan.domain] = saved.memory.rpartition("/")[0]
        tick = world.memories[saved.memory.rpartition("/")[0]]
        below = [world.written.get(layer, 0) for layer in (root.path, *root.backing)]
        assert max(below) <= tick, "a disk that is newer than the memory"
        world.open_as_qemu(plan)
        world.run_as(plan)
        world.marks[plan.domain] = mark
        if self.refuses:
            world.domains[plan.domain] = DomainState.OFF
            raise LoadRefused(self.refuses)
        world.domains[plan.domain] = DomainState.PAUSED
        await self._crash_point("load:paused")
        world.monitor(plan.domain)
        world.root_layers[plan.domain] = world.known_layers[plan.domain] = root.path
        world.ticks[plan.domain] = tick
        world.limits[plan.domain] = (plan.disk_iops, plan.disk_mib_s)
        if plan.template is None:
            world.frozen.add(plan.domain)

    async def begin_copies(self, domain: str, targets: Mapping[str, str]) -> None:
        self._world.act(f"copy disks of {domain}")
        await self._world.hanging.passed(f"copy disks of {domain}", domain)
        self._there(domain)
        volumes = self._world.volumes
        assert all(path in self._world.files for path in targets.values())
        volumes.mirrors[domain] = dict(targets)
        volumes.uncopied[domain] = 2**30
        await self._crash_point("copies:begun")

    async def uncopied_bytes(self, domain: str) -> int | None:
        self._there(domain)
        self._world.act(f"look at copies of {domain}")
        left = self._world.volumes.uncopied[domain]
        self._world.volumes.uncopied[domain] = 0
        return left

    async def end_copies(self, domain: str, roles: Collection[str]) -> None:
        self._world.act(f"end copies of {domain}")
        await self._world.hanging.passed(f"end copies of {domain}", domain)
        self._there(domain)
        volumes = self._world.volumes
        assert domain in self._world.frozen, "the workload writes meanwhile"
        assert volumes.mirrors[domain].keys() == set(roles)
        for role, path in dict(volumes.mirrors[domain]).items():
            content = volumes.content[volumes.roles[domain][role]]
            volumes.copies[path] = dict(content)
            await self._crash_point("copies:one-ended")
        volumes.mirrors.pop(domain, None)

    async def drop_copies(self, domain: str) -> None:
        self._world.act(f"drop copies of {domain}")
        await self._world.hanging.passed(f"drop copies of {domain}", domain)
        self._world.monitor(domain)
        self._world.volumes.mirrors.pop(domain, None)

    async def switch_layer(self, domain: str, layer: str) -> None:
        self._world.act(f"switch {domain} to {layer}")
        await self._world.hanging.passed(f"switch {domain}", domain)
        self._world.monitor(domain)
        assert domain in self._world.frozen, "the workload writes meanwhile"
        assert layer in self._world.files
        self._world.root_layers[domain] = layer
        await self._crash_point("switch:qemu-only")
        self._world.monitor(domain)
        self._world.known_layers[domain] = layer

    async def holds(self, layer: str, below: str) -> bool:
        written = self._world.root_layers.values()
        return layer in written or below not in written
