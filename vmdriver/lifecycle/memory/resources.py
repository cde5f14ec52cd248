"""What a machine holds while its memory or disk is kept, and after it came back from memory.

Giving a capture back, whether it came to its end or not, means that the machine goes on, if it is
still there.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from vmdriver.lifecycle.engine.ledger import Held, Ledger, Scope, Wanted
from vmdriver.lifecycle.engine.resource import (
    CHECKPOINT_PART,
    FROZEN,
    LAYER,
    MAPPED,
    PAUSED,
    VOLUME_COPIES,
    WRITTEN,
    Given,
    Resource,
)
from vmdriver.lifecycle.ports.guest import Guest
from vmdriver.lifecycle.ports.host import Disks, Hypervisor
from vmdriver.lifecycle.ports.memory import (
    STATE_BYTES,
    MachineMemory,
    MemoryStore,
)
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import Disk, LaunchPlan, MachineUser
from vmdriver.model.record import layers_of

T = TypeVar("T")
_THAW_TIMEOUT_S = 10.0
_UNCONFIRMED_THAW_TIMEOUT_S = 2.0
"""It has had its time to answer when it was to freeze."""


@dataclass(frozen=True)
class CheckpointPart:
    """The directory that a checkpoint is written to, with room for the memory set aside."""

    store: MemoryStore
    key, needs = CHECKPOINT_PART, ("directory",)

    async def acquire(self, ledger: Ledger, directory: str, needed_bytes: int) -> str:
        """The path of the file for the memory. Exhausted."""
        data = {"directory": directory}
        begin = partial(self.store.begin, directory, needed_bytes)
        return str(await ledger.acquire(self.key, Scope.CAPTURE, data, begin))

    async def release(self, given: Given) -> None:
        await self.store.remove(given["directory"])


@dataclass(frozen=True)
class FrozenWorkload:
    """The workload stands still, the guest's file systems are flushed."""

    guest: Guest
    hypervisor: Hypervisor
    memory: MachineMemory
    key, needs = FROZEN, ("domain",)

    def wanted(
        self, domain: str, limit_s: float, tell: Callable[[str], None]
    ) -> Wanted:
        """`tell` is called with the guest's boot id."""

        async def freeze() -> None:
            tell(await self.guest.freeze(domain, limit_s))

        return Wanted(Held(self.key, Scope.CAPTURE, {"domain": domain}), freeze)

    async def release(self, given: Given) -> None:
        """The wall clock is set before it goes on. Fine where nothing runs."""
        domain = given["domain"]
        state = await self.hypervisor.observe(domain)
        if state is DomainState.STALLED:
            # It would stay frozen when it goes on: now or at the next try.
            await self.memory.go_on(domain)
        elif state is not DomainState.RUNNING:
            return
        limit_s = _THAW_TIMEOUT_S if given.held.done else _UNCONFIRMED_THAW_TIMEOUT_S
        await self.guest.thaw(domain, limit_s)


@dataclass(frozen=True)
class PausedMachine:
    """The machine's virtual CPUs stand still."""

    memory: MachineMemory
    key, needs = PAUSED, ("domain",)

    def wanted(self, domain: str) -> Wanted:
        """NotFound."""
        entry = Held(self.key, Scope.CAPTURE, {"domain": domain})
        return Wanted(entry, partial(self.memory.pause, domain))

    async def release(self, given: Given) -> None:
        await self.memory.go_on(given["domain"])


@dataclass(frozen=True)
class WrittenMemory:
    """The memory is being written. What comes of it is in the checkpoint's part, and goes with
    that. What goes on `meanwhile` is not protected against its own writing any more.
    """

    memory: MachineMemory
    key, needs = WRITTEN, ()

    async def acquire(
        self, ledger: Ledger, domain: str, write: Callable[[], Awaitable[T]]
    ) -> T:
        """What `write` says of it."""
        data = {"domain": domain}
        written = await ledger.acquire(self.key, Scope.CAPTURE, data, write)
        assert written is not None  # noqa: S101 - a capture is never resumed half-way
        return written

    def wanted(
        self, domain: str, write: Callable[[], Awaitable[None]], *, meanwhile: bool
    ) -> Wanted:
        """Together with what the machine stands still by. `meanwhile`: it goes on when `write` has
        only begun.
        """
        data = {"domain": domain, **({"meanwhile": True} if meanwhile else {})}
        return Wanted(Held(self.key, Scope.CAPTURE, data), write)

    async def release(self, given: Given) -> None:
        if given.held.data.get("meanwhile"):
            await self.memory.give_up_stream(given["domain"])


def is_being_written(ledger: Ledger) -> bool:
    """Whether a machine stands still for its memory to be written. The intent alone says less: it
    is noted with that of freezing, which may take as long as a guest likes.
    """
    paused = ledger.get(PAUSED)
    return ledger.get(WRITTEN) is not None and paused is not None and paused.done


@dataclass(frozen=True)
class NewLayer:
    """A layer that the root disk is to go on with, until the record names it."""

    disks: Disks
    key, needs = LAYER, ("path",)

    async def acquire(
        self, ledger: Ledger, disk: Disk, user: MachineUser | None, *, running: bool
    ) -> None:
        """Made durably: it may have to be stood on after a power cut. `running`: a machine is to
        switch to it.
        """

        async def create() -> None:
            await self.disks.create_overlay(disk, user)
            await self.disks.sync_layer(disk.path)

        data = {"path": disk.path, "running": running}
        await ledger.acquire(self.key, Scope.CAPTURE, data, create)

    async def release(self, given: Given) -> None:
        if given.record is None or given["path"] not in given.record.layers:
            await self.disks.remove(given["path"])


@dataclass(frozen=True)
class CopiedVolumes:
    """Copies of a sandbox's volumes, until the record names them with their snapshot. A machine may
    be writing to them still.
    """

    disks: Disks
    memory: MachineMemory
    key, needs = VOLUME_COPIES, ("domain", "paths")

    async def acquire(
        self,
        ledger: Ledger,
        domain: str,
        paths: Sequence[str],
        begin: Callable[[], Awaitable[None]],
    ) -> None:
        """`domain`: the machine that writes to some of them, or ""."""
        data = {"domain": domain, "paths": json.dumps(list(paths))}
        await ledger.acquire(self.key, Scope.CAPTURE, data, begin)

    async def release(self, given: Given) -> None:
        if given["domain"]:
            await self.memory.drop_copies(given["domain"])
        named = layers_of(given.record) if given.record is not None else set()
        for path in json.loads(given["paths"]):
            if path not in named:
                await self.disks.remove(str(path))


def copies_begun(ledger: Ledger) -> set[str]:
    """Their paths, until they are given back or a snapshot's."""
    held = ledger.get(VOLUME_COPIES)
    return set(json.loads(held.data["paths"])) if held is not None else set()


@dataclass(frozen=True)
class MappedMemory:
    """The file that a machine which came back from it maps as long as it runs. Without a manifest
    it is no checkpoint.
    """

    store: MemoryStore
    key, needs = MAPPED, ("directory",)

    async def acquire(self, ledger: Ledger, image: str, directory: str) -> None:
        """Make that checkpoint one."""
        data = {"directory": directory}
        retire = partial(self.store.retire, image, directory)
        await ledger.acquire(self.key, Scope.RUNTIME, data, retire)

    async def release(self, given: Given) -> None:
        await self.store.remove(given["directory"])


def image_bytes(plan: LaunchPlan) -> int:
    """Room for a checkpoint of that machine."""
    return plan.memory_mib * 2**20 + STATE_BYTES


def memory_resources(ports: Ports) -> Sequence[Resource]:
    """All of them."""
    return (
        CheckpointPart(ports.memory_store),
        FrozenWorkload(ports.guest, ports.hypervisor, ports.memory),
        PausedMachine(ports.memory),
        WrittenMemory(ports.memory),
        NewLayer(ports.disks),
        CopiedVolumes(ports.disks, ports.memory),
        MappedMemory(ports.memory_store),
    )
