"""Holding a machine still while its memory is kept: for a suspension or a snapshot.

Every step is in the ledger with the scope CAPTURE before it is taken. Giving that scope
back, in whatever process, means: what was half written is removed, the machine goes on, the
workload is thawed. So a capture that fails or is cut off leaves the sandbox running as
before; one that has published its manifest leaves the same, or is a suspension and ends the
machine first.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from vmdriver.errors import DriverError, Refused
from vmdriver.host.retry import tried
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Ledger, Scope, Wanted
from vmdriver.lifecycle.engine.resource import FROZEN, LAYER, PAUSED
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.lifecycle.memory import restore_check
from vmdriver.lifecycle.memory.held_still import HeldStill
from vmdriver.lifecycle.memory.layers import stand_on
from vmdriver.lifecycle.memory.manifest import describe
from vmdriver.lifecycle.memory.resources import (
    CheckpointPart,
    FrozenWorkload,
    PausedMachine,
    WrittenMemory,
    image_bytes,
)
from vmdriver.lifecycle.ports.memory import Captured
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model import wishes
from vmdriver.model.checkpoint import CheckpointKind, MemoryRef
from vmdriver.model.condition import Standstill
from vmdriver.model.phase import Action, Intent, Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason

_log = logging.getLogger(__name__)
T = TypeVar("T")
_WRITE_BACK_S = 1.0
"""A guest that has more to write than that writes the rest while it stands still."""


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What suspensions and snapshots have in common. `saved`: what a sandbox's extensions have
    saved; `freeze_timeout_s`: how long a guest may take to freeze its workload.
    """

    ports: Ports
    paths: Paths
    giving_back: GivingBack
    saved: Callable[[SandboxRecord, Ledger], Mapping[str, Any]]
    freeze_timeout_s: float
    _still: WeakKeyDictionary[Sandbox, HeldStill] = field(
        default_factory=WeakKeyDictionary, init=False
    )

    # --- an end of it

    def why_held(self, sandbox: Sandbox) -> Standstill | None:
        """Why a machine that is to go on stands still, since letting it go on has failed."""
        return self._held_still(sandbox).why

    def _held_still(self, sandbox: Sandbox) -> HeldStill:
        return self._still.setdefault(sandbox, HeldStill())

    async def go_on_if_stale(self, sandbox: Sandbox) -> None:
        """Have what a capture holds still, that nobody is at any more, go on. DriverError where
        that cannot be, and is not shown meanwhile.
        """
        record = sandbox.record
        kept = record.intent is not Intent.DELETED and not sandbox.going_down()
        stale = kept and record.phase is not Phase.SUSPENDING
        if not stale or not sandbox.ledger.held(Scope.CAPTURE):
            return
        sandbox.underway.doing = Action.GO_ON
        try:
            await self.abandon(sandbox)
        except DriverError:
            if wishes.asked_of(sandbox.record) != wishes.STOPPED_SUSPENDED:
                if self.why_held(sandbox) is None:
                    raise
                return  # looked at, and shown, while it is tried again
            # A stop does not wait until it can be suspended.
            await sandbox.note(phase=Phase.STOPPING, unwind_reason=Reason.STOPPED.value)

    async def abandon(self, sandbox: Sandbox) -> None:
        """Let the machine go on after a capture that was cut off or has failed. One that is to
        be ended is ended first: to let it go on may hang, and is in vain.
        """
        if sandbox.going_down():
            return
        try:
            await self.settle_layer(sandbox)
            if sandbox.unsaved:
                # The record on disk may stand on less than the machine wrote to: until it can
                # be stored, the ledger alone claims that layer.
                await sandbox.update()
        except DriverError:
            # What it stands on cannot be noted (on a full disk, for one), so that the layer has
            # to stay held. Nothing stands still for that reason.
            for key in (PAUSED, FROZEN):
                what = f"{sandbox.record.id}: {key}"
                await tried(_log, self._let_go_on(sandbox, key), what)
            raise
        errors = await sandbox.ledger.release(
            Scope.CAPTURE, lambda held: self._give_back(sandbox, held)
        )
        if errors:
            raise errors[0]

    async def let_go_on(self, sandbox: Sandbox) -> None:
        """Before the capture ends: giving it back finds it done. DriverError."""
        for key in (PAUSED, FROZEN):
            await self._let_go_on(sandbox, key)

    async def _let_go_on(self, sandbox: Sandbox, key: str) -> None:
        held = sandbox.ledger.get(key)
        if held is not None:
            await self._give_back(sandbox, held)

    async def _give_back(self, sandbox: Sandbox, held: Held) -> None:
        """Undo one step of a capture. What holds the machine still is tried rarely."""
        still = self._held_still(sandbox)
        there = sandbox.ledger.get(MACHINE) is not None
        if there and (error := still.not_now(held.key)) is not None:
            raise error
        try:
            await self.giving_back.one(sandbox, held, Reason.STOPPED)
        except DriverError as error:
            if held.key in {PAUSED, FROZEN}:
                still.failed(held, error)
            raise
        still.ended(held.key)

    async def settle_layer(self, sandbox: Sandbox, *, regardless: bool = False) -> None:
        """Stand on the new layer if the machine may write to it already, or may have done so
        before it ended. Nothing is lost when it did not: an empty layer shows what is below it,
        whoever writes there.
        """
        held, layers = sandbox.ledger.get(LAYER), sandbox.record.layers
        if held is None or held.data["path"] in layers:
            return
        path, plan = held.data["path"], sandbox.record.plan
        # Earlier drivers did not note it; theirs for a return stands on the snapshot's layers.
        running = held.data.get("running", not sandbox.record.reverting)
        if plan is None or not running:
            return  # of a stopped sandbox, or for a return: no machine has it
        # The note that it was made may be what a full disk has lost.
        made = held.done or await self.ports.disks.is_whole(path, layers[-1])
        if made and await self.ports.memory.holds(path, layers[-1]):
            await stand_on(sandbox, (*layers, path), regardless=regardless)

    # --- the steps

    async def begin(
        self, sandbox: Sandbox, plan: LaunchPlan, *, copies: int = 1
    ) -> str:
        """Make room for the memory, `copies` times; the path of the file for it. The file that the
        machine maps is read into the page cache before the machine stands still: page by page,
        as QEMU would ask for it, that takes several times as long. Exhausted.
        """
        directory = self.paths.of(sandbox.record.id).part
        room = copies * image_bytes(plan)
        path = await CheckpointPart(self.ports.memory_store).acquire(
            sandbox.ledger, directory, room
        )
        if sandbox.record.mapped:
            await self.ports.memory_store.read_ahead(sandbox.record.mapped)
        return path

    async def hold_disk(
        self, sandbox: Sandbox, plan: LaunchPlan, watch: Stopwatch
    ) -> None:
        """Workload frozen, disks flushed; for its disk alone, whose layers are switched in one
        moment, nothing more has to stand still.
        """
        await self._stand_still(sandbox, plan, watch, pause=False)

    async def write_to_go_on(
        self,
        sandbox: Sandbox,
        plan: LaunchPlan,
        watch: Stopwatch,
        write: Callable[[], Awaitable[T]],
        *,
        meanwhile: bool = False,
    ) -> tuple[T, str]:
        """What `write` makes of the memory of a machine that stands still for no more than that,
        and the guest's boot id. `meanwhile`: `write` only begins it.
        """
        written: list[T] = []

        async def keep() -> None:
            written.append(await write())

        memory = WrittenMemory(self.ports.memory)
        wanted = memory.wanted(plan.domain, keep, meanwhile=meanwhile)
        # Of two steps, with the disk's, where it only begins here.
        step = wanted if meanwhile else _timed(watch, "memory", wanted)
        boot_id = await self._stand_still(sandbox, plan, watch, step)
        return written[-1], boot_id

    async def write(
        self,
        sandbox: Sandbox,
        plan: LaunchPlan,
        watch: Stopwatch,
        write: Callable[[], Awaitable[T]],
    ) -> tuple[T, str]:
        """The same of a machine that ends afterwards: not before that can be noted."""
        boot_id = await self._stand_still(sandbox, plan, watch)
        with watch.step("memory"):
            ledger, domain = sandbox.ledger, plan.domain
            memory = WrittenMemory(self.ports.memory)
            written = await memory.acquire(ledger, domain, write)
        return written, boot_id

    async def _stand_still(
        self,
        sandbox: Sandbox,
        plan: LaunchPlan,
        watch: Stopwatch,
        *then: Wanted,
        pause: bool = True,
    ) -> str:
        """Workload frozen, disks flushed, machine paused, and what else is wanted in that state.
        The guest's boot id.
        """
        ports, domain, boot_ids = self.ports, plan.domain, [""]
        await self._write_back(plan, watch)
        frozen = FrozenWorkload(ports.guest, ports.hypervisor, ports.memory)
        wanted = [
            _timed(
                watch,
                "freeze",
                frozen.wanted(domain, self.freeze_timeout_s, boot_ids.append),
            )
        ]
        if pause:
            paused = PausedMachine(ports.memory).wanted(domain)
            wanted.append(_timed(watch, "pause", paused))
        await sandbox.ledger.acquire_in_turn([*wanted, *then])
        return boot_ids[-1]

    async def _write_back(self, plan: LaunchPlan, watch: Stopwatch) -> None:
        """What can be on the guest's disks before it stands still. Without that it takes longer,
        as with agents of earlier releases.
        """
        with watch.step("sync"):
            try:
                await self.ports.guest.sync(plan.domain, _WRITE_BACK_S)
            except DriverError as error:
                _log.info("%s: not written back: %s", plan.domain, error.text())

    async def publish(
        self,
        sandbox: Sandbox,
        plan: LaunchPlan,
        captured: Captured,
        *,
        kind: CheckpointKind,
        directory: str,
        guest_boot_id: str,
        watch: Stopwatch,
        name: str = "",
    ) -> MemoryRef:
        """Everything durable, the manifest last, then the checkpoint's directory gets its name."""
        ports, record = self.ports, sandbox.record
        part, store = self.paths.of(record.id).part, ports.memory_store
        with watch.step("write out"):
            await ports.disks.flush_status(plan.disk("status").path)
            parts = await store.write_parts(part, captured)
        token = await ports.records.token(record.id)
        manifest = await describe(
            ports,
            kind,
            plan,
            captured,
            parts,
            name=name,
            workspace=record.spec.workspace,
            guest_boot_id=guest_boot_id,
            spec=record.spec,
            token_expires_at=restore_check.token_expiry(
                token.get_secret_value() if token else ""
            ),
            secrets_digest=record.secrets_digest,
            extensions=dict(self.saved(record, sandbox.ledger)),
        )
        with watch.step("publish"):
            digest = await store.publish(part, directory, manifest)
            await store.end(part)
        return MemoryRef(
            directory=directory,
            digest=digest,
            kind=kind,
            name=name,
            stored_bytes=manifest.stored_bytes,
        )


def _timed(watch: Stopwatch, name: str, wanted: Wanted) -> Wanted:
    async def effect() -> None:
        with watch.step(name):
            await wanted.effect()

    return replace(wanted, effect=effect)


def refuse_unkept(plan: LaunchPlan) -> None:
    """Refused where the machine has a device, or a folder of the host's: nobody can keep the state
    of that device, or of the program that reads the folder.
    """
    if plan.devices:
        raise Refused(
            f"the machine has a passed-through device ({plan.devices[0]}), whose state "
            "cannot be kept",
            reason="DevicePassedThrough",
            resolution="stop it instead, or take a snapshot of the disk only",
        )
    if plan.host_mounts:
        raise Refused(
            f"the machine has a folder of the host's ({plan.host_mounts[0].path}); what it has "
            "open there cannot be kept with its memory",
            reason="HostMountAttached",
            resolution="stop it instead, or take a snapshot of the disk only",
        )


def refuse_volumes(plan: LaunchPlan) -> None:
    """Refused where the machine has volumes: a memory that goes on beside another content of its
    disk would destroy that. A suspension keeps its volumes, and with them what they hold.
    """
    if plan.volumes:
        names = ", ".join(volume.name for volume in plan.volumes)
        raise Refused(
            f"the machine has volumes ({names}), and a snapshot's memory would go on beside "
            "another content of theirs",
            reason="VolumeAttached",
            resolution="take a snapshot of the disk only (--disk-only), with the volumes if "
            "you want them (--volumes), or suspend it",
        )
