"""What a running machine holds, in the order in which it comes to it. A launch is this list, not a
long function, whatever the machine begins from.

The machine is the last of them, so whoever finds a running machine knows that everything else is
in place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Ledger, Scope
from vmdriver.lifecycle.engine.resource import (
    FILES,
    FIREWALL,
    LEASE,
    OVERLAY,
    TAP,
    Data,
    Given,
    OfDomain,
    OfLayer,
    Resource,
    Resources,
)
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Disks, Hypervisor, Network
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.plan import LaunchPlan, Lease
from vmdriver.model.record import SandboxRecord, layers_of
from vmdriver.model.runs import Reason

Effects = Mapping[str, Callable[[], Awaitable[None]]]
"""By key."""


@dataclass(frozen=True)
class MachineSource:
    """What a plan's machine comes from. Without more it is made anew, and boots."""

    plan: LaunchPlan
    mark: str
    """Of its owner, on the host."""
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, bytes] = field(default_factory=dict)
    instead: Effects = field(default_factory=dict)
    """How a fork, a claim or a resume has it, where that is not how a boot does."""


async def is_there() -> None:
    """For what the source has already."""


class Part(Resource, Protocol):
    """One thing of a machine that comes up."""

    scope: Scope
    blame: Reason
    """What clean-up hooks are told if it fails."""
    may_hang: bool
    """A program does it, which may be ended at any time: all or nothing is done, or what is half
    done is replaced the next time.
    """

    def needs(self, plan: LaunchPlan, mark: str) -> Data:
        """What its release will be given, stored before it is acquired."""

    async def acquire(self, source: MachineSource) -> None:
        """Have it, for a machine that boots. DriverError: there may be a half of it."""


async def take(ledger: Ledger, part: Part, source: MachineSource) -> None:
    """Acquire it as its source has it, through the ledger."""
    data = part.needs(source.plan, source.mark).model_dump()
    effect = source.instead.get(part.key, partial(part.acquire, source))
    await ledger.acquire(part.key, part.scope, data, effect, may_hang=part.may_hang)


@dataclass(frozen=True)
class AddressLease:
    """The block of addresses, with the names that go with it; taken once and kept until delete."""

    pool: AddressPool
    network: Network
    key, data = LEASE, Data

    async def acquire(self, owner: str, ledger: Ledger) -> Lease:
        """The one that it has, or a new one. Exhausted, HostError."""
        held = ledger.get(LEASE)
        if held is not None:
            return Lease.model_validate(held.data)
        lease = self.pool.take(owner, await self.network.taken())

        async def adopt() -> None:
            self.pool.adopt(owner, lease)

        await ledger.acquire(LEASE, Scope.PERSISTENT, lease.model_dump(), adopt)
        return lease

    async def release(self, given: Given[Data]) -> None:
        self.pool.free(given.owner)


@dataclass(frozen=True)
class Layers:
    """Layers of root disks, which several may stand on."""

    disks: Disks
    of_others: Callable[[str], set[str]]
    """What anybody else than that sandbox needs."""

    async def drop(self, sandbox_id: str, layers: set[str]) -> None:
        """Remove those of these layers that no other sandbox or template stands on."""
        for path in sorted(layers - self.of_others(sandbox_id)):
            await self.disks.remove(path)


@dataclass(frozen=True)
class RootLayer:
    """The root disk's own layer. With it go all that the record names."""

    layers: Layers
    key, scope, data = OVERLAY, Scope.PERSISTENT, OfLayer
    blame, may_hang = Reason.GUEST_PREPARE_FAILED, True

    def needs(self, plan: LaunchPlan, _mark: str) -> OfLayer:
        return OfLayer(path=plan.disk("root").path)

    async def acquire(self, source: MachineSource) -> None:
        await self.layers.disks.create_overlay(source.plan.disk("root"))

    async def release(self, given: Given[OfLayer]) -> None:
        path, record = given.data.path, given.record
        if record is None:
            await self.layers.disks.remove(path)
        else:
            await self.layers.drop(record.id, {path, *layers_of(record)})


class OfFiles(Data):
    """The seed's path."""

    seed: str


@dataclass(frozen=True)
class LaunchFiles:
    """Seed, status disk and console."""

    disks: Disks
    key, scope, data = FILES, Scope.RUNTIME, OfFiles
    blame, may_hang = Reason.GUEST_PREPARE_FAILED, False

    def needs(self, plan: LaunchPlan, _mark: str) -> OfFiles:
        return OfFiles(seed=plan.disk("seed").path)

    async def acquire(self, source: MachineSource) -> None:
        await self.disks.write_launch_files(
            source.plan, source.environment, source.secrets
        )

    async def release(self, given: Given[OfFiles]) -> None:
        # The status disk and the console stay: they say how it ended. The seed holds secrets.
        await self.disks.remove(given.data.seed)


class OfTap(Data):
    """`guest_ip` is "" where the record could not be read."""

    tap: str
    mark: str
    guest_ip: str


@dataclass(frozen=True)
class Tap:
    """The host's end of the machine's network, and what is connected through it."""

    network: Network
    key, scope, data = TAP, Scope.RUNTIME, OfTap
    blame, may_hang = Reason.LAUNCHER_SPAWN_FAILED, False

    def needs(self, plan: LaunchPlan, mark: str) -> OfTap:
        lease = plan.network.lease
        return OfTap(tap=lease.tap, mark=mark, guest_ip=lease.guest_ip)

    async def acquire(self, source: MachineSource) -> None:
        await self.network.make_tap(source.plan.network, source.mark)

    async def release(self, given: Given[OfTap]) -> None:
        await self.network.remove_tap(given.data.tap, given.data.mark)
        if given.data.guest_ip:
            await self.network.reset_connections(given.data.guest_ip)


class OfFirewall(Data):
    """Its table has the tap's name."""

    tap: str


@dataclass(frozen=True)
class Firewall:
    """The table of rules for the tap."""

    network: Network
    key, scope, data = FIREWALL, Scope.RUNTIME, OfFirewall
    blame, may_hang = Reason.LAUNCHER_SPAWN_FAILED, True

    def needs(self, plan: LaunchPlan, _mark: str) -> OfFirewall:
        return OfFirewall(tap=plan.network.lease.tap)

    async def acquire(self, source: MachineSource) -> None:
        await self.network.load_rules(source.plan.network, source.mark)

    async def release(self, given: Given[OfFirewall]) -> None:
        await self.network.remove_rules(given.data.tap)


@dataclass(frozen=True)
class Machine:
    """The domain, running or about to."""

    hypervisor: Hypervisor
    key, scope, data = MACHINE, Scope.RUNTIME, OfDomain
    blame, may_hang = Reason.LAUNCHER_SPAWN_FAILED, False

    def needs(self, plan: LaunchPlan, _mark: str) -> OfDomain:
        return OfDomain(domain=plan.domain)

    async def acquire(self, source: MachineSource) -> None:
        await self.hypervisor.start(source.plan, source.mark)

    async def release(self, given: Given[OfDomain]) -> None:
        await self.hypervisor.destroy(given.data.domain)


def launch_parts(ports: Ports, layers: Layers) -> tuple[Part, ...]:
    """A launch: what its machine holds, in the order in which it is acquired."""
    network = ports.network
    files, machine = LaunchFiles(ports.disks), Machine(ports.hypervisor)
    return RootLayer(layers), files, Tap(network), Firewall(network), machine


@dataclass(frozen=True)
class Undoer:
    """Gives back what a sandbox's ledger holds, in whatever process."""

    resources: Resources
    layers: Layers

    async def undo(
        self, record: SandboxRecord, ledger: Ledger, held: Held, reason: Reason
    ) -> None:
        """One entry's thing. May be repeated."""
        await self.resources.release(held, record.id, ledger, record, reason)

    async def drop_layers(self, sandbox_id: str, layers: set[str]) -> None:
        """Remove those of these layers that no other sandbox or template stands on."""
        await self.layers.drop(sandbox_id, layers)
