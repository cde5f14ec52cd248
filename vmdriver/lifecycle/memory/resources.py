"""What a machine holds while its memory or disk is kept, and after it came back from memory.

Giving a capture back, whether it came to its end or not, means that the machine goes on, if it is
still there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.engine.resource import (
    FROZEN,
    IMAGE_PART,
    LAYER,
    MAPPED,
    PAUSED,
    WRITTEN,
    Data,
    Given,
    OfDirectory,
    OfDomain,
    OfLayer,
    Resource,
    hold,
)
from vmdriver.lifecycle.ports.guest import Guest
from vmdriver.lifecycle.ports.host import Disks, Hypervisor
from vmdriver.lifecycle.ports.memory import (
    STATE_BYTES,
    Captured,
    MachineMemory,
    MemoryStore,
    Streamed,
)
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import Disk, LaunchPlan

_THAW_TIMEOUT_S = 10.0
_UNCONFIRMED_THAW_TIMEOUT_S = 2.0
"""It has had its time to answer when it was to freeze."""


@dataclass(frozen=True)
class ImagePart:
    """The directory that an image is written to, with room for the memory set aside."""

    store: MemoryStore
    key, scope, data = IMAGE_PART, Scope.CAPTURE, OfDirectory

    async def acquire(self, ledger: Ledger, directory: str, needed_bytes: int) -> str:
        """The path of the file for the memory. Exhausted."""
        begin = partial(self.store.begin, directory, needed_bytes)
        return str(await hold(ledger, self, OfDirectory(directory=directory), begin))

    async def release(self, given: Given[OfDirectory]) -> None:
        await self.store.remove(given.data.directory)


@dataclass(frozen=True)
class FrozenWorkload:
    """The workload stands still, the guest's file systems are flushed."""

    guest: Guest
    hypervisor: Hypervisor
    memory: MachineMemory
    key, scope, data = FROZEN, Scope.CAPTURE, OfDomain

    async def acquire(self, ledger: Ledger, domain: str, limit_s: float) -> str:
        """The guest's boot id."""
        freeze = partial(self.guest.freeze, domain, limit_s)
        return str(await hold(ledger, self, OfDomain(domain=domain), freeze))

    async def release(self, given: Given[OfDomain]) -> None:
        """The wall clock is set before it goes on. Fine where nothing runs."""
        domain, confirmed = given.data.domain, given.held.done
        state = await self.hypervisor.observe(domain)
        if state is DomainState.STALLED:
            # It would stay frozen when it goes on: now or at the next try.
            await self.memory.go_on(domain)
        elif state is not DomainState.RUNNING:
            return
        limit_s = _THAW_TIMEOUT_S if confirmed else _UNCONFIRMED_THAW_TIMEOUT_S
        await self.guest.thaw(domain, limit_s)


@dataclass(frozen=True)
class PausedMachine:
    """The machine's virtual CPUs stand still."""

    memory: MachineMemory
    key, scope, data = PAUSED, Scope.CAPTURE, OfDomain

    async def acquire(self, ledger: Ledger, domain: str) -> None:
        """NotFound."""
        pause = partial(self.memory.pause, domain)
        await hold(ledger, self, OfDomain(domain=domain), pause)

    async def release(self, given: Given[OfDomain]) -> None:
        await self.memory.go_on(given.data.domain)


@dataclass(frozen=True)
class WrittenMemory:
    """The memory is being written: what comes of it is in the image's part, and goes with that."""

    memory: MachineMemory
    key, scope, data = WRITTEN, Scope.CAPTURE, Data

    async def acquire(self, ledger: Ledger, plan: LaunchPlan, path: str) -> Captured:
        """Into that file, with which it is finished."""
        domain = OfDomain(domain=plan.domain)
        write = partial(self.memory.capture, plan.domain, path, plan.memory_mib)
        captured = await hold(ledger, self, domain, write)
        assert captured is not None  # noqa: S101 - a capture is never resumed half-way
        return captured

    async def stream(self, ledger: Ledger, plan: LaunchPlan, path: str) -> Streamed:
        """Beside that file, which it is to be cut into when the machine goes on."""
        domain = OfDomain(domain=plan.domain)
        write = partial(self.memory.stream, plan.domain, f"{path}.stream")
        streamed = await hold(ledger, self, domain, write)
        assert streamed is not None  # noqa: S101 - a capture is never resumed half-way
        return streamed

    async def release(self, given: Given[Data]) -> None:
        """Nothing of its own is left."""


class OfNewLayer(OfLayer):
    """`running`: a machine is to switch to it. None: an earlier driver did not note it."""

    running: bool | None = None


@dataclass(frozen=True)
class NewLayer:
    """A layer that the root disk is to go on with, until the record names it."""

    disks: Disks
    key, scope, data = LAYER, Scope.CAPTURE, OfNewLayer

    async def acquire(self, ledger: Ledger, disk: Disk, *, running: bool) -> None:
        """Made durably: it may have to be stood on after a power cut."""

        async def create() -> None:
            await self.disks.create_overlay(disk)
            await self.disks.sync_layer(disk.path)

        await hold(ledger, self, OfNewLayer(path=disk.path, running=running), create)

    async def release(self, given: Given[OfNewLayer]) -> None:
        record, path = given.holder.record, given.data.path
        if record is None or path not in record.layers:
            await self.disks.remove(path)


@dataclass(frozen=True)
class MappedMemory:
    """The file that a machine which came back from it maps as long as it runs. Without a manifest
    it is no image.
    """

    store: MemoryStore
    key, scope, data = MAPPED, Scope.RUNTIME, OfDirectory

    async def acquire(self, ledger: Ledger, image: str, directory: str) -> None:
        """Make that image one."""
        retire = partial(self.store.retire, image, directory)
        await hold(ledger, self, OfDirectory(directory=directory), retire)

    async def release(self, given: Given[OfDirectory]) -> None:
        await self.store.remove(given.data.directory)


def image_bytes(plan: LaunchPlan) -> int:
    """Room for an image of that machine."""
    return plan.memory_mib * 2**20 + STATE_BYTES


def memory_resources(ports: Ports) -> Sequence[Resource]:
    """All of them."""
    return (
        ImagePart(ports.memory_store),
        FrozenWorkload(ports.guest, ports.hypervisor, ports.memory),
        PausedMachine(ports.memory),
        WrittenMemory(ports.memory),
        NewLayer(ports.disks),
        MappedMemory(ports.memory_store),
    )
