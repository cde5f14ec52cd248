"""Named snapshots: taken while the sandbox goes on, returned to, removed.

A snapshot is the disk's layers up to now, which nobody writes to again, and (unless it is of
the disk only) the memory of the same moment. The sandbox continues on a new, empty layer.
Returning to it puts another new layer on the snapshot's, so it can be returned to any number
of times and is never changed.
"""

from __future__ import annotations

import logging
from functools import partial

from vmdriver.errors import (
    DriverError,
    NotFound,
    Refused,
    TimedOut,
)
from vmdriver.host import facts
from vmdriver.host.retry import tried
from vmdriver.lifecycle.engine.jobs import Job
from vmdriver.lifecycle.engine.resource import FROZEN, OVERLAY, PAUSED
from vmdriver.lifecycle.extending.vm_phases import view_of
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.memory.capture import Stopwatch
from vmdriver.lifecycle.memory.resources import NewLayer, WrittenMemory
from vmdriver.lifecycle.memory.resume import ResumeActions
from vmdriver.lifecycle.memory.snapshot_room import check_room
from vmdriver.lifecycle.memory.suspend import SuspendActions
from vmdriver.model import wishes
from vmdriver.model.memory_image import MemoryRef, SeenAge, SnapshotEntry
from vmdriver.model.phase import Asked, Intent, MachineState, Phase
from vmdriver.model.plan import Disk, LaunchPlan
from vmdriver.model.record import layers_of, utc_now
from vmdriver.model.runs import Reason
from vmdriver.model.spec import SandboxSpec

_log = logging.getLogger(__name__)


class SnapshotActions(SuspendActions, ResumeActions):
    """What an operator asks for between two turns of the loop, one after the other."""

    async def perform(self, job: Job) -> None:
        """Have the loop do it when it rests; returns when it is done, raises what it
        raises. NotFound, Refused when the sandbox is gone or going.
        """
        if self.gone:
            raise NotFound(f"sandbox {self.record.id} was deleted")
        if self.record.intent is Intent.DELETED:
            raise Refused(
                f"sandbox {self.record.id} is being deleted", reason="Deleting"
            )
        answer = self.jobs.put(job)
        self.start()
        await answer

    def start(self) -> None:
        """Run the loop; the worker does."""
        raise NotImplementedError

    # --- take

    def find_snapshot(self, name: str) -> SnapshotEntry:
        """The snapshot of that name. NotFound."""
        for entry in self.record.snapshots:
            if entry.name == name:
                return entry
        raise NotFound(f"sandbox {self.record.id} has no snapshot {name!r}")

    async def take_snapshot(
        self, name: str, disk_only: bool, machine: MachineState
    ) -> None:
        """Job: take one. Refused, AlreadyExists, Exhausted, HostError; then nothing has
        changed.
        """
        plan, phase = self.record.plan, self.record.phase
        runs = phase is Phase.RUNNING and machine is MachineState.READY
        if plan is None or not (runs or (phase is Phase.STOPPED and disk_only)):
            raise Refused(
                f"sandbox {self.record.id} is {phase.value}",
                reason="NotRunning",
                resolution="start or resume it; of a stopped one --disk-only is possible",
            )
        check_room(
            self.record, name, self._shared.settings, self._shared.host_snapshots()
        )
        if not disk_only:
            self._refuse_devices(plan)
        await self._shared.extensions.before_capture(
            self.record,
            self.ledger,
            "before_snapshot",
            lambda extension, context: extension.before_snapshot(context, plan, name),
        )
        watch = Stopwatch()
        self.untidy = True  # whatever of it the record comes to name
        try:
            if runs:
                entry = await self._of_running(name, disk_only, plan, watch)
            else:
                entry = await self._of_stopped(name)
            await self.update(snapshots=(*self.record.snapshots, entry))
        except BaseException:
            # Why it failed is the answer, not what else does after that.
            what = f"{self.record.id}: let it go on"
            await tried(_log, self._abandon_capture(), what)
            raise
        await self._abandon_capture()
        size = f"{entry.stored_bytes / 2**20:.0f} MiB"
        self.tell("SnapshotTaken", f"{name} ({size}) in {watch.text()}")

    async def _of_running(
        self, name: str, disk_only: bool, plan: LaunchPlan, watch: Stopwatch
    ) -> SnapshotEntry:
        ports, layers = self._shared.ports, self.record.layers
        paths = self._shared.launcher.places.paths(self.record.id)
        memory_path, streamed = "", None
        if not disk_only:
            memory_path = await self._begin_image(plan, paths.part, copies=2)
            await self._read_ahead()
        layer = await self._new_layer(layers, running=True)
        boot_id = await self._freeze(plan, watch)
        if not disk_only:
            with watch.step("memory"):
                stream = partial(
                    ports.memory.stream, plan.domain, f"{memory_path}.stream"
                )
                streamed = await WrittenMemory().acquire(
                    self.ledger, plan.domain, stream
                )
        with watch.step("disk"):
            await self._switch_layer(plan.domain, layer)
        with watch.step("go on"):
            # Before the files are written out; giving the capture back finds it done.
            for key in (PAUSED, FROZEN):
                if (held := self.ledger.get(key)) is not None:
                    await self._give_back(held)
        still = sum(watch.steps.values())
        disk_bytes = await ports.disks.freeze_layer(layers[-1])
        ref: MemoryRef | None = None
        if streamed is not None:
            target = f"{paths.snapshots}/{name}"
            with watch.step("cut"):
                captured = await ports.memory.split(
                    streamed, memory_path, plan.memory_mib
                )
            ref = await self._publish_image(
                "snapshot", name, target, captured, boot_id, plan, watch
            )
        self.tell(
            "SnapshotReleased", f"{name}: the workload stood still for {still:.3f} s"
        )
        return SnapshotEntry(
            name=name,
            created_at=utc_now(),
            age=SeenAge().at(facts.boot_id(), facts.uptime_s()),
            layers=layers,
            memory=ref,
            disk_bytes=disk_bytes,
        )

    async def _switch_layer(self, domain: str, layer: str) -> None:
        try:
            await self._shared.ports.memory.switch_layer(domain, layer)
        except TimedOut:
            # It may come to it yet.
            await self._stand_on((*self.record.layers, layer))
            raise
        await self._stand_on((*self.record.layers, layer))

    async def _of_stopped(self, name: str) -> SnapshotEntry:
        layers, made = self.record.layers, self.ledger.get(OVERLAY)
        if made is None or not made.done:
            # Noted by a launch that was cut off before its disk was made.
            raise Refused(
                f"sandbox {self.record.id} has no disk yet",
                reason="NeverStarted",
                resolution="start it",
            )
        layer = await self._new_layer(layers)
        # Read-only only then: a record that cannot be saved stays on a layer to write to.
        await self._stand_on((*layers, layer))
        disk_bytes = await self._shared.ports.disks.freeze_layer(layers[-1])
        return SnapshotEntry(
            name=name,
            created_at=utc_now(),
            age=SeenAge().at(facts.boot_id(), facts.uptime_s()),
            layers=layers,
            disk_bytes=disk_bytes,
        )

    async def _new_layer(self, on: tuple[str, ...], *, running: bool = False) -> str:
        """`running`: a machine is to switch to it."""
        path = self._shared.launcher.places.new_layer(self.record.id)
        disk = Disk(
            role="root",
            path=path,
            format="qcow2",
            read_only=False,
            backing=planner.below((*on, path), self.record.base),
        )
        layer = NewLayer(self._shared.ports.disks)
        await layer.acquire(self.ledger, disk, running=running)
        return path

    async def allow_fork(self, spec: SandboxSpec) -> None:
        """Ask the extensions whether a new sandbox may start from a snapshot of this one."""
        fork = view_of(spec)
        await self._shared.extensions.before_capture(
            self.record,
            self.ledger,
            "before_fork",
            lambda extension, context: extension.before_fork(context, fork),
        )

    # --- remove

    async def remove_snapshot(self, name: str) -> None:
        """Job: remove one, with whatever only it needed. NotFound."""
        entry = self.find_snapshot(name)
        rest = tuple(e for e in self.record.snapshots if e.name != name)
        memory = self.record.memory
        if memory is not None and memory == entry.memory:
            raise Refused(
                f"snapshot {name!r} is being restored", reason="SnapshotInUse"
            )
        await self.update(snapshots=rest)
        if entry.memory is not None:
            await self._shared.ports.memory_store.remove(entry.memory.directory)
        unneeded = set(entry.layers) - layers_of(self.record)
        await self._shared.undoer.drop_layers(self.record.id, unneeded)
        self.tell("SnapshotRemoved", name)

    # --- return

    async def return_to(self, name: str, when_asked: Asked) -> None:
        """Job: note that the sandbox is to be as it was then. What it is now is lost. Refused
        when it was stopped or deleted since the operator asked, Exhausted when it does not run
        and has no room.
        """
        self.find_snapshot(name)
        with self.room_to_run():
            await self.decide(
                lambda record: wishes.returned(record, name, when_asked=when_asked)
            )

    async def _return_unless_stopped(self) -> None:
        """A return that cannot be now is tried again, but does not stand in a later stop's way:
        then the sandbox stays what it was.
        """
        try:
            await self._revert()
        except DriverError as error:
            if self.record.intent is Intent.RUNNING or not self.record.reverting:
                raise
            text = f"{self.record.reverting}: {error.text()}; it is stopped as it was"
            await self.update(reverting="")
            self.tell("NotReverted", text, warn=True)

    async def _revert(self) -> None:
        """The machine away; a new layer on the snapshot's; then the ordinary way up. What the
        sandbox was goes last, when the record stands on the snapshot.
        """
        entry = self.find_snapshot(self.record.reverting)
        old, present = layers_of(self.record), self.record.memory
        await self._unwind(Reason.STOPPED)
        layer = await self._new_layer(entry.layers)
        phase = Phase.STOPPED if entry.memory is None else Phase.SUSPENDED
        await self._stand_on(
            (*entry.layers, layer),
            memory=entry.memory,
            phase=phase,
            reverting="",
            failure=None,
            note="",
        )
        await self._abandon_capture()
        if present is not None and present.kind == "suspended":
            await self._shared.ports.memory_store.remove(present.directory)
        unneeded = old - layers_of(self.record)
        await self._shared.undoer.drop_layers(self.record.id, unneeded)
        self.tell("Reverted", f"the sandbox returns to its snapshot {entry.name}")
