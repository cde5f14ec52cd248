"""What a running machine holds, in the order in which it comes to it. A launch is this list, not a
long function, whatever the machine begins from.

The machine is the last of them to run, so whoever finds a running machine knows that everything
else is in place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby

from vmdriver.errors import Exhausted, NotOursError, Unavailable
from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Ledger, Scope, Wanted
from vmdriver.lifecycle.engine.resource import (
    FILES,
    FIREWALL,
    LEASE,
    OVERLAY,
    TAP,
    Given,
)
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Disks, Hypervisor, LaunchFiles, Network
from vmdriver.lifecycle.ports.network_guard import NetworkGuard
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.plan import LaunchPlan, Lease
from vmdriver.model.record import layers_of
from vmdriver.model.runs import Reason

_log = logging.getLogger(__name__)
Effects = Mapping[str, Callable[[], Awaitable[None]]]
"""By key."""


class InForce:
    """Whether a machine's rules are, for who is to let it go on."""

    def __init__(self) -> None:
        self._told, self._loaded = asyncio.Event(), False

    @contextmanager
    def once_loaded(self) -> Iterator[None]:
        """They are when what is inside has come to its end, and will not be if it fails."""
        try:
            yield
            self._loaded = True
        finally:
            self._told.set()

    async def passed(self) -> None:
        """Wait until they are. Unavailable: they could not be loaded."""
        await self._told.wait()
        if not self._loaded:
            raise Unavailable("the machine was not let go on: its rules are not loaded")


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
    paused: bool = False
    """Its machine is had without an instruction of it run. So its rules are loaded beside that, and
    who lets it go on, waits for them.
    """
    rules: InForce = field(default_factory=InForce)

    @property
    def beside_rules(self) -> bool:
        """Whether the machine may be begun before they are loaded: until then nothing leaves its
        namespace, whatever a QEMU does in there that was taken over by what it has loaded.
        """
        network = self.plan.network
        return self.paused and network.namespace is not None and not network.moved


async def is_there() -> None:
    """For what the source has already."""


@dataclass(frozen=True)
class Part:
    """One thing of a machine that comes up. It is a resource."""

    key: str
    needs: tuple[str, ...]
    release: Callable[[Given], Awaitable[None]]
    data: Callable[[MachineSource], Mapping[str, str]]
    """Its entry's, stored before it is acquired."""
    acquire: Callable[[MachineSource], Awaitable[None]]
    """Have it, for a machine that boots. DriverError: there may be a half of it."""
    scope: Scope = Scope.RUNTIME
    blame: Reason = Reason.LAUNCHER_SPAWN_FAILED
    """What clean-up hooks are told if it fails."""
    may_hang: bool = False
    """A program does it, which may be ended at any time: all or nothing is done, or what is half
    done is replaced the next time.
    """
    alone: bool = False
    """It stands on all that come before it, and all that come after it stand on it."""
    applies: Callable[[MachineSource], bool] = lambda _: True
    """Whether that machine has it."""


Around = Callable[[Part], AbstractContextManager[None]]
"""Entered while a part is had."""


async def take(
    ledger: Ledger,
    parts: Sequence[Part],
    source: MachineSource,
    around: Around = lambda _: nullcontext(),
) -> None:
    """Acquire them as their source has them, through the ledger, in order; those that do not stand
    on each other side by side. When one cannot be had, those beside it come to their end first.
    """
    own = [part for part in parts if part.applies(source)]
    known = ledger.get(FIREWALL)
    if known is not None and known.done:
        with source.rules.once_loaded():
            pass
    place = partial(_place, beside_rules=source.beside_rules)
    groups = [list(group) for _, group in groupby(enumerate(own), place)]
    for group in groups:
        wanted = [_wanted(part, source, around) for _, part in group]
        # What is begun behind it notes it first.
        later = group is not groups[-1]
        await ledger.acquire_together(wanted, note_later=later)


def _place(numbered: tuple[int, Part], *, beside_rules: bool) -> int:
    """The same number for parts that are had side by side."""
    number, part = numbered
    if beside_rules and part.key in {FIREWALL, MACHINE}:
        return -2
    return number if part.alone else -1


def _wanted(part: Part, source: MachineSource, around: Around) -> Wanted:
    effect = source.instead.get(part.key, partial(part.acquire, source))

    ruled = source.rules.once_loaded if part.key == FIREWALL else nullcontext

    async def have() -> None:
        with around(part), ruled():
            await effect()

    held = Held(part.key, part.scope, dict(part.data(source)))
    return Wanted(held, have, part.may_hang)


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


def root_layer(layers: Layers) -> Part:
    """The root disk's own layer. With it go all that the record names."""

    async def release(given: Given) -> None:
        if given.record is None:
            await layers.disks.remove(given["path"])
        else:
            named = layers_of(given.record)
            await layers.drop(given.owner, {given["path"], *named})

    return Part(
        OVERLAY,
        ("path",),
        scope=Scope.PERSISTENT,
        blame=Reason.GUEST_PREPARE_FAILED,
        data=lambda source: {"path": source.plan.disk("root").path},
        acquire=lambda source: layers.disks.create_overlay(
            source.plan.disk("root"), source.plan.user
        ),
        release=release,
        may_hang=True,
    )


def launch_files(files: LaunchFiles, disks: Disks) -> Part:
    """Seed, status disk and console. Only the seed, which holds secrets, goes: the others say how
    it ended.
    """
    return Part(
        FILES,
        ("seed",),
        blame=Reason.GUEST_PREPARE_FAILED,
        data=lambda source: {"seed": source.plan.disk("seed").path},
        acquire=lambda source: files.write(
            source.plan, source.environment, source.secrets
        ),
        release=lambda given: disks.remove(given["seed"]),
    )


def tap(network: Network) -> Part:
    """The host's end of the machine's network, with the namespace around it, and what is connected
    through it.
    """

    def data(source: MachineSource) -> Mapping[str, str]:
        lease, within = source.plan.network.lease, source.plan.network.namespace
        return {
            "tap": lease.tap,
            "mark": source.mark,
            "guest_ip": lease.guest_ip,
            "namespace": within or "",
        }

    async def release(given: Given) -> None:
        """What is marked as somebody else's is nothing to give back: ours is gone."""
        try:
            await network.remove_tap(given["tap"], given["mark"], made=given.held.done)
        except NotOursError as error:
            _log.warning("%s: %s", given.owner, error.text())
        if given["guest_ip"]:  # unknown where the record could not be read
            await network.reset_connections(given["guest_ip"])

    return Part(
        TAP,
        ("tap", "mark", "guest_ip"),
        data=data,
        acquire=lambda source: network.make_tap(source.plan.network, source.mark),
        release=release,
    )


def firewall(network: Network, guard: NetworkGuard) -> Part:
    """The tables of rules for the tap, whose name they have, and that they stay as they were
    loaded.
    """

    async def release(given: Given) -> None:
        await guard.leave(given["tap"].removeprefix("vmdriver_"))
        await network.remove_rules(given["tap"])

    return Part(
        FIREWALL,
        ("tap",),
        data=lambda source: {"tap": source.plan.network.lease.tap},
        acquire=lambda source: guard.keep(source.plan.network, source.mark),
        release=release,
        may_hang=True,
        alone=True,
    )


def machine(hypervisor: Hypervisor) -> Part:
    """The domain, running or about to."""
    return Part(
        MACHINE,
        ("domain",),
        data=lambda source: {"domain": source.plan.domain},
        acquire=lambda source: hypervisor.start(source.plan, source.mark),
        release=lambda given: hypervisor.destroy(given["domain"]),
        alone=True,
    )


def launch_parts(ports: Ports, layers: Layers, *more: Part) -> tuple[Part, ...]:
    """A launch: what its machine holds, in the order in which it is acquired. `more`: what stands
    on nothing of it but its user.
    """
    disk, files = root_layer(layers), launch_files(ports.launch_files, ports.disks)
    rules = firewall(ports.network, ports.network_guard)
    network, last = tap(ports.network), machine(ports.hypervisor)
    return disk, files, network, *more, rules, last


@dataclass(frozen=True)
class AddressLease:
    """The block of addresses, with the names that go with it; taken once and kept until delete."""

    addresses: AddressPool
    network: Network
    key, needs = LEASE, ()

    async def acquire(
        self, owner: str, ledger: Ledger, *, modest: bool = False
    ) -> Lease:
        """The one that it has, or a new one. Exhausted, HostError. `modest`: for a machine of no
        sandbox, which leaves one free and has nobody give way; others do.
        """
        held = ledger.get(LEASE)
        if held is not None:
            return Lease.model_validate(held.data)
        lease = await self._take(owner, modest=modest)

        async def adopt() -> None:
            self.addresses.adopt(owner, lease)

        data = lease.model_dump()
        try:
            # The entry alone says it all, done or not.
            await ledger.acquire(LEASE, Scope.PERSISTENT, data, adopt, note_later=True)
        except BaseException:
            if ledger.get(LEASE) is None:  # not even noted: nobody would give it back
                self.addresses.free(owner)
            raise
        return lease

    async def _take(self, owner: str, *, modest: bool) -> Lease:
        while True:
            taken = await self.network.taken()
            try:
                return self.addresses.take(owner, taken, modest=modest)
            except Exhausted:
                if modest or not await self.addresses.ways.make_way():
                    raise

    async def release(self, given: Given) -> None:
        self.addresses.owned.returned(given)
