"""Named snapshots: taken while the sandbox goes on, returned to, removed.

A snapshot is the disk's layers up to now, which nobody writes to again, and (unless it is of
the disk only) the memory of the same moment. The sandbox continues on a new, empty layer.
Returning to it puts another new layer on the snapshot's, so it can be returned to any number
of times and is never changed. It has copies of the sandbox's volumes in it where that was asked
for (snapshot_volumes.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from vmdriver.errors import DriverError, NotFound, Refused, TimedOut
from vmdriver.host import facts
from vmdriver.host.retry import tried
from vmdriver.lifecycle.engine import measures
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.resource import OVERLAY
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.extending.subject import view_of
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.resources import Layers
from vmdriver.lifecycle.memory.capture import Capture
from vmdriver.lifecycle.memory.layers import stand_on
from vmdriver.lifecycle.memory.resources import NewLayer
from vmdriver.lifecycle.memory.snapshot_room import check_room, takeable
from vmdriver.lifecycle.memory.snapshot_volumes import Copies, SnapshotVolumes
from vmdriver.lifecycle.memory.streaming import Streaming
from vmdriver.lifecycle.memory.volumes_back import VolumesBack
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model import wishes
from vmdriver.model.checkpoint import MemoryRef, SeenAge, SnapshotEntry
from vmdriver.model.phase import Action, Asked, Intent, MachineState, Phase
from vmdriver.model.plan import Disk, LaunchPlan, MachineUser
from vmdriver.model.record import SandboxRecord, layers_of, utc_now
from vmdriver.model.runs import Reason
from vmdriver.model.spec import SandboxSpec

_log = logging.getLogger(__name__)


def find_snapshot(record: SandboxRecord, name: str) -> SnapshotEntry:
    """The sandbox's snapshot of that name. NotFound."""
    for entry in record.snapshots:
        if entry.name == name:
            return entry
    raise NotFound(f"sandbox {record.id} has no snapshot {name!r}")


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """What an operator asks for between two turns of the loop, one after the other: jobs, but for
    `allow_fork` and `revert_if_due`. `on_host`: number and bytes of all snapshots that there are.
    """

    ports: Ports
    paths: Paths
    settings: Settings
    capture: Capture
    streaming: Streaming
    extensions: ExtensionRunner
    giving_back: GivingBack
    layers: Layers
    volumes: SnapshotVolumes
    volumes_back: VolumesBack
    budget: MemoryBudget
    on_host: Callable[[], tuple[int, int]]

    # --- take

    async def take(
        self,
        sandbox: Sandbox,
        machine: MachineState,
        name: str,
        *,
        disk_only: bool,
        volumes: bool = False,
    ) -> None:
        """Take one, `volumes`: with the sandbox's volumes. Refused, NotFound, AlreadyExists,
        Exhausted, TimedOut, HostError; then nothing has changed.
        """
        asked = {"disk_only": disk_only, "volumes": volumes}
        plan, runs = takeable(sandbox.record, machine, **asked)
        check_room(sandbox.record, name, self.settings, self.on_host())
        await self.extensions.before_capture(
            sandbox.record,
            sandbox.ledger,
            "before_snapshot",
            lambda extension, context: extension.before_snapshot(context, plan, name),
        )
        watch = Stopwatch()
        sandbox.untidy = True  # whatever of it the record comes to name
        try:
            with ExitStack() as kept:
                copies = self.volumes.none()
                if volumes:
                    with watch.step("copy volumes"):
                        copies = await self.volumes.begin(
                            sandbox, plan, kept, runs=runs
                        )
                if runs:
                    parts = sandbox, name, disk_only, plan, watch, copies
                    entry = await self._of_running(*parts)
                    entry = entry.model_copy(update={"steps": watch.timed()})
                else:
                    entry = await self._of_stopped(sandbox, name)
                entry = entry.model_copy(update={"volumes": await copies.sealed()})
            await sandbox.update(snapshots=(*sandbox.record.snapshots, entry))
        except BaseException:
            # Why it failed is the answer, not what else does after that.
            what = f"{sandbox.record.id}: let it go on"
            await tried(_log, self.capture.abandon(sandbox), what)
            raise
        await self.capture.abandon(sandbox)
        size = f"{entry.stored_bytes / 2**20:.0f} MiB"
        sandbox.tell("SnapshotTaken", f"{name} ({size}) in {watch.text()}")
        measures.took("snapshot taken", sandbox.record.id, watch)

    async def _of_running(
        self,
        sandbox: Sandbox,
        name: str,
        disk_only: bool,
        plan: LaunchPlan,
        watch: Stopwatch,
        copies: Copies,
    ) -> SnapshotEntry:
        capture, layers = self.capture, sandbox.record.layers
        memory_path, streamed, boot_id = "", None, ""
        if not disk_only:
            with watch.step("room"):
                memory_path = await capture.begin(sandbox, plan, copies=2)
        with watch.step("new layer"):
            layer = await self._new_layer(sandbox, layers, running=True)
        switch = partial(self._switch_layer, sandbox, plan.domain, layer, watch)
        if disk_only:
            await capture.hold_disk(sandbox, plan, watch)
            await copies.end(watch)
            await switch()
        else:
            path = f"{memory_path}.stream"
            stream = self.streaming.stream
            streamed, boot_id = await stream(sandbox, plan, watch, path, switch)
        with watch.step("go on"):
            await capture.let_go_on(sandbox)  # before anything is written out
        still = watch.between("freeze", "go on")
        with watch.step("note"):
            disk_bytes = await self._stand_above(sandbox, layers, layer)
        ref: MemoryRef | None = None
        if streamed is not None:
            cut = self.streaming.cut
            captured = await cut(sandbox, plan, watch, streamed, memory_path)
            ref = await capture.publish(
                sandbox,
                plan,
                captured,
                kind="snapshot",
                name=name,
                directory=f"{self.paths.of(sandbox.record.id).snapshots}/{name}",
                guest_boot_id=boot_id,
                watch=watch,
            )
        text = f"{name}: the workload stood still for {still:.3f} s"
        if streamed is not None and not streamed.meanwhile:
            text += ", while its memory was written"
        sandbox.tell("SnapshotReleased", text)
        return _entry(name, layers, disk_bytes, ref)

    async def _stand_above(
        self, sandbox: Sandbox, layers: tuple[str, ...], layer: str
    ) -> int:
        """The record stands on `layer` from now on, and nobody writes to those below it; the bytes
        of the last of them. All of them, down to another sandbox's: what put a layer on one of them
        was cut off before it was frozen, or found that a machine holds it. StorageError.
        """
        # Read-only only then: a record that cannot be saved stays on a layer to write to.
        await stand_on(sandbox, (*layers, layer))
        disk_bytes = 0
        for below in layers[sandbox.record.inherited_layers :]:
            disk_bytes = await self.ports.disks.freeze_layer(below, _user(sandbox))
        return disk_bytes

    async def _switch_layer(
        self, sandbox: Sandbox, domain: str, layer: str, watch: Stopwatch
    ) -> None:
        """The record says so when the machine goes on: until then the ledger does."""
        try:
            with watch.step("disk"):
                await self.ports.memory.switch_layer(domain, layer)
        except TimedOut:
            # It may come to it yet.
            await stand_on(sandbox, (*sandbox.record.layers, layer))
            raise

    async def _of_stopped(self, sandbox: Sandbox, name: str) -> SnapshotEntry:
        layers, made = sandbox.record.layers, sandbox.ledger.get(OVERLAY)
        if made is None or not made.done:
            # Noted by a launch that was cut off before its disk was made.
            raise Refused(
                f"sandbox {sandbox.record.id} has no disk yet",
                reason="NeverStarted",
                resolution="start it",
            )
        layer = await self._new_layer(sandbox, layers)
        disk_bytes = await self._stand_above(sandbox, layers, layer)
        return _entry(name, layers, disk_bytes)

    async def _new_layer(
        self, sandbox: Sandbox, on: tuple[str, ...], *, running: bool = False
    ) -> str:
        """`running`: a machine is to switch to it."""
        user = _user(sandbox)
        path = self.paths.new_layer(sandbox.record.id, user)
        disk = Disk(
            role="root",
            path=path,
            format="qcow2",
            read_only=False,
            backing=planner.below((*on, path), sandbox.record.base),
        )
        await NewLayer(self.ports.disks).acquire(
            sandbox.ledger, disk, user, running=running
        )
        return path

    async def allow_fork(self, sandbox: Sandbox, spec: SandboxSpec) -> None:
        """Ask the extensions whether a new sandbox may start from a snapshot of this one."""
        fork = view_of(spec)
        await self.extensions.before_capture(
            sandbox.record,
            sandbox.ledger,
            "before_fork",
            lambda extension, context: extension.before_fork(context, fork),
        )

    # --- remove

    async def remove(self, sandbox: Sandbox, name: str) -> None:
        """Remove one, with whatever only it needed. NotFound."""
        entry = find_snapshot(sandbox.record, name)
        rest = tuple(e for e in sandbox.record.snapshots if e.name != name)
        memory = sandbox.record.memory
        if memory is not None and memory == entry.memory:
            raise Refused(
                f"snapshot {name!r} is being restored", reason="SnapshotInUse"
            )
        await sandbox.update(snapshots=rest)
        if entry.memory is not None:
            await self.ports.memory_store.remove(entry.memory.directory)
        unneeded = set(entry.files) - layers_of(sandbox.record)
        await self.layers.drop(sandbox.record.id, unneeded)
        sandbox.tell("SnapshotRemoved", name)

    # --- return

    async def return_to(
        self, sandbox: Sandbox, name: str, when_asked: Asked, *, volumes: bool = False
    ) -> None:
        """Note that the sandbox is to be as it was then. What it is now is lost. Refused
        when it was stopped or deleted since the operator asked, Exhausted when it does not run
        and has no room. `volumes`: the snapshot's are to be what they were, too; Refused, NotFound,
        Exhausted where that cannot be.
        """
        entry = find_snapshot(sandbox.record, name)
        if volumes:
            await self.volumes_back.check(sandbox.record, entry)
        with self.budget.room_to_run(sandbox.record):
            returned = partial(wishes.returned, volumes=volumes)
            await sandbox.decide(lambda record: returned(record, name, when_asked))

    async def revert_if_due(self, sandbox: Sandbox) -> None:
        """Do what `return_to` noted, unless the machine is to be ended first. A return that cannot
        be now is tried again, but does not stand in a later stop's way: then the sandbox stays what
        it was.
        """
        record = sandbox.record
        kept = record.intent is not Intent.DELETED and not sandbox.going_down()
        if not (record.reverting and kept):
            return
        if record.reverting_volumes and record.intent is Intent.STOPPED:
            # To copy volumes may take longer than a stop may.
            await self._not_reverted(sandbox, "it was stopped before its volumes were")
            return
        sandbox.underway.doing = Action.REVERT
        try:
            await self._revert(sandbox)
        except DriverError as error:
            if sandbox.record.intent is Intent.RUNNING or not sandbox.record.reverting:
                raise
            await self._not_reverted(sandbox, error.text())

    async def _not_reverted(self, sandbox: Sandbox, why: str) -> None:
        text = f"{sandbox.record.reverting}: {why}; it is stopped as it was"
        await sandbox.update(reverting="", reverting_volumes=False)
        sandbox.tell("NotReverted", text, warn=True)

    async def _revert(self, sandbox: Sandbox) -> None:
        """The machine away; a new layer on the snapshot's; then the ordinary way up. What the
        sandbox was goes last, when the record stands on the snapshot.
        """
        entry = find_snapshot(sandbox.record, sandbox.record.reverting)
        old, present = layers_of(sandbox.record), sandbox.record.memory
        await self.giving_back.run(sandbox, Reason.STOPPED)
        layer = await self._new_layer(sandbox, entry.layers)
        volumes = sandbox.record.reverting_volumes
        if volumes:
            await self.volumes_back.prepare(sandbox, entry, layer)
        phase = Phase.STOPPED if entry.memory is None else Phase.SUSPENDED
        await stand_on(
            sandbox,
            (*entry.layers, layer),
            memory=entry.memory,
            phase=phase,
            reverting="",
            reverting_volumes=False,
            failure=None,
            note="",
        )
        await self.capture.abandon(sandbox)
        if present is not None and present.kind == "suspended":
            await self.ports.memory_store.remove(present.directory)
        unneeded = old - layers_of(sandbox.record)
        await self.layers.drop(sandbox.record.id, unneeded)
        text = f"the sandbox returns to its snapshot {entry.name}"
        named = ", ".join(copy.name for copy in entry.volumes) if volumes else ""
        sandbox.tell("Reverted", f"{text}, with {named}" if named else text)


def _user(sandbox: Sandbox) -> MachineUser | None:
    """As whom its machine runs, or ran."""
    return sandbox.record.plan.user if sandbox.record.plan else None


def _entry(
    name: str, layers: tuple[str, ...], disk_bytes: int, memory: MemoryRef | None = None
) -> SnapshotEntry:
    return SnapshotEntry(
        name=name,
        created_at=utc_now(),
        age=SeenAge().at(facts.boot_id(), facts.uptime_s()),
        layers=layers,
        memory=memory,
        disk_bytes=disk_bytes,
    )
