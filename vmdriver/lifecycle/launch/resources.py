"""What a running machine holds, in the order in which it comes to it. A launch is this list, not a
long function, whatever the machine begins from.

The machine is the last of them, so whoever finds a running machine knows that everything else is
in place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
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
    Holder,
    OfDomain,
    OfLayer,
    Resource,
    Resources,
    hold,
)
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Disks, Hypervisor, Network
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.ids import mark
from vmdriver.model.plan import LaunchPlan, Lease
from vmdriver.model.record import SandboxRecord, layers_of
from vmdriver.model.runs import Reason

Effect = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class MachineSource:
    """Where a plan's machine comes from: what is done for each thing that it holds, where boot,
    fork, claim and resume differ.
    """

    plan: LaunchPlan
    mark: str
    """Of its owner, on the host."""
    make_layer: Effect
    write_files: Effect
    bring_tap: Effect
    start: Effect


def booted(
    ports: Ports,
    instance: str,
    plan: LaunchPlan,
    environment: Mapping[str, str],
    secrets: Mapping[str, bytes],
) -> MachineSource:
    """It is made anew and boots. Other sources are this one with some effects replaced."""
    owner, disks = mark(instance, plan.sandbox_id), ports.disks
    return MachineSource(
        plan,
        owner,
        make_layer=partial(disks.create_overlay, plan.disk("root")),
        write_files=partial(disks.write_launch_files, plan, environment, secrets),
        bring_tap=partial(ports.network.make_tap, plan.network, owner),
        start=partial(ports.hypervisor.start, plan, owner),
    )


async def is_there() -> None:
    """The effect for what the source has already."""


class Part(Resource, Protocol):
    """One thing of a machine that comes up."""

    @property
    def blame(self) -> Reason:
        """What clean-up hooks are told if it fails."""

    @property
    def may_hang(self) -> bool:
        """A program does it, which may be ended at any time: all or nothing is done, or what is
        half done is replaced the next time.
        """

    def needs(self, source: MachineSource) -> Data:
        """What its release will be given, stored before it is acquired."""

    async def acquire(self, source: MachineSource) -> None:
        """Have it. DriverError; then there may be a half of it."""


async def take(ledger: Ledger, part: Part, source: MachineSource) -> None:
    """Acquire it, through the ledger."""
    effect = partial(part.acquire, source)
    await hold(ledger, part, part.needs(source), effect, may_hang=part.may_hang)


@dataclass(frozen=True)
class AddressLease:
    """The block of addresses, with the names that go with it; taken once and kept until delete."""

    pool: AddressPool
    network: Network
    key, scope, data = LEASE, Scope.PERSISTENT, Data

    async def acquire(self, holder_id: str, ledger: Ledger) -> Lease:
        """The one that it has, or a new one. Exhausted, HostError."""
        held = ledger.get(LEASE)
        if held is not None:
            return Lease.model_validate(held.data)
        lease = self.pool.take(holder_id, await self.network.taken())

        async def adopt() -> None:
            self.pool.adopt(holder_id, lease)

        await ledger.acquire(LEASE, self.scope, lease.model_dump(), adopt)
        return lease

    async def release(self, given: Given[Data]) -> None:
        self.pool.free(given.holder.id)


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

    def needs(self, source: MachineSource) -> OfLayer:
        return OfLayer(path=source.plan.disk("root").path)

    async def acquire(self, source: MachineSource) -> None:
        await source.make_layer()

    async def release(self, given: Given[OfLayer]) -> None:
        path, record = given.data.path, given.holder.record
        if record is None:
            await self.layers.disks.remove(path)
        else:
            await self.layers.drop(record.id, {path, *layers_of(record)})


class OfFiles(Data):
    """The seed is at that path."""

    seed: str


@dataclass(frozen=True)
class LaunchFiles:
    """Seed, status disk and console. The latter two stay: they say how it ended. The seed holds
    secrets.
    """

    disks: Disks
    key, scope, data = FILES, Scope.RUNTIME, OfFiles
    blame, may_hang = Reason.GUEST_PREPARE_FAILED, False

    def needs(self, source: MachineSource) -> OfFiles:
        return OfFiles(seed=source.plan.disk("seed").path)

    async def acquire(self, source: MachineSource) -> None:
        await source.write_files()

    async def release(self, given: Given[OfFiles]) -> None:
        await self.disks.remove(given.data.seed)


class OfTap(Data):
    """It has that name and mark; the guest's address is "" where the record could not be read."""

    tap: str
    mark: str
    guest_ip: str


@dataclass(frozen=True)
class Tap:
    """The host's end of the machine's network, and what is connected through it."""

    network: Network
    key, scope, data = TAP, Scope.RUNTIME, OfTap
    blame, may_hang = Reason.LAUNCHER_SPAWN_FAILED, False

    def needs(self, source: MachineSource) -> OfTap:
        lease = source.plan.network.lease
        return OfTap(tap=lease.tap, mark=source.mark, guest_ip=lease.guest_ip)

    async def acquire(self, source: MachineSource) -> None:
        await source.bring_tap()

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

    def needs(self, source: MachineSource) -> OfFirewall:
        return OfFirewall(tap=source.plan.network.lease.tap)

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

    def needs(self, source: MachineSource) -> OfDomain:
        return OfDomain(domain=source.plan.domain)

    async def acquire(self, source: MachineSource) -> None:
        await source.start()

    async def release(self, given: Given[OfDomain]) -> None:
        await self.hypervisor.destroy(given.data.domain)


def launch_parts(ports: Ports, layers: Layers) -> tuple[Part, ...]:
    """A launch: what its machine holds, in the order in which it is acquired."""
    return (
        RootLayer(layers),
        LaunchFiles(ports.disks),
        Tap(ports.network),
        Firewall(ports.network),
        Machine(ports.hypervisor),
    )


@dataclass(frozen=True)
class Undoer:
    """Gives back what a sandbox's ledger holds, in whatever process."""

    resources: Resources
    layers: Layers

    async def undo(
        self, record: SandboxRecord, ledger: Ledger, held: Held, reason: Reason
    ) -> None:
        """One entry's thing. May be repeated."""
        holder = Holder(record.id, ledger, record, reason)
        await self.resources.release(held, holder)

    async def drop_layers(self, sandbox_id: str, layers: set[str]) -> None:
        """Remove those of these layers that no other sandbox or template stands on."""
        await self.layers.drop(sandbox_id, layers)
