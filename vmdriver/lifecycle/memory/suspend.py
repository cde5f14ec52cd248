"""Going down with the memory kept."""

from __future__ import annotations

import logging
from functools import partial

from vmdriver.errors import DriverError, NotFound, Refused
from vmdriver.host.retry import tried
from vmdriver.lifecycle.memory.capture import CaptureActions, Stopwatch
from vmdriver.lifecycle.memory.resources import WrittenMemory
from vmdriver.model import wishes
from vmdriver.model.memory_image import MemoryRef
from vmdriver.model.phase import MachineState, Phase
from vmdriver.model.runs import Reason
from vmdriver.model.wishes import Wish

_log = logging.getLogger(__name__)


class SuspendActions(CaptureActions):
    """Action SUSPEND. It is begun again after a crash; ledger, manifest and record say how
    far it came.
    """

    async def _suspend(self, machine: MachineState) -> None:
        paths = self._shared.launcher.places.paths(self.record.id)
        if self.record.phase is not Phase.SUSPENDING:
            await self._shared.ports.memory_store.remove(paths.suspended)
            await self.update(phase=Phase.SUSPENDING, memory=None)
        watch = Stopwatch()
        try:
            ref = await self._published(paths.suspended)
            if ref is None:
                await self._abandon_capture()
                ref = await self._take(machine, paths.suspended, watch)
        except DriverError as error:
            await self._not_suspended(error)
            return
        with watch.step("release"):
            await self._unwind(Reason.SUSPENDED)
            await self._abandon_capture()
        size = f"{ref.stored_bytes / 2**20:.0f} MiB"
        self.tell("Suspended", f"memory kept ({size}) in {watch.text()}")
        await self.update(
            phase=Phase.SUSPENDED, memory=ref, failure=None, note="", crash_restarts=0
        )

    async def _published(self, directory: str) -> MemoryRef | None:
        """The image, if an earlier process came that far."""
        store = self._shared.ports.memory_store
        try:
            manifest, digest = await store.read(directory)
        except (NotFound, Refused):
            return None
        return MemoryRef(
            directory=directory,
            digest=digest,
            kind=manifest.kind,
            stored_bytes=manifest.stored_bytes,
        )

    async def _take(
        self, machine: MachineState, target: str, watch: Stopwatch
    ) -> MemoryRef:
        plan, shared = self.record.plan, self._shared
        if machine is MachineState.STALLED:
            raise Refused("the machine stands still", reason="StandsStill")
        if plan is None or machine is not MachineState.READY:
            raise Refused("the machine is not there any more", reason="MachineLost")
        self._refuse_devices(plan)
        with watch.step("hooks"):
            await shared.extensions.before_capture(
                self.record,
                self.ledger,
                "before_suspend",
                lambda extension, context: extension.before_suspend(context, plan),
            )
        part = shared.launcher.places.paths(self.record.id).part
        memory = await self._begin_image(plan, part)
        await self._read_ahead()
        boot_id = await self._freeze(plan, watch)
        with watch.step("memory"):
            domain = plan.domain
            write = partial(
                shared.ports.memory.capture, domain, memory, plan.memory_mib
            )
            captured = await WrittenMemory().acquire(self.ledger, domain, write)
        return await self._publish_image(
            "suspended", "", target, captured, boot_id, plan, watch
        )

    async def _not_suspended(self, error: DriverError) -> None:
        """As before, if the machine is there; a stop that was asked for happens anyway."""
        self.refusal = error
        if (
            wishes.asked_after(Wish.GO_ON, wishes.asked_of(self.record))
            == wishes.RUNNING
        ):
            # It may have its name already: the next process would take it for this suspension,
            # and the machine goes on from here.
            paths = self._shared.launcher.places.paths(self.record.id)
            await self._shared.ports.memory_store.unpublish(paths.suspended)
            # Tried again while it runs, and shown meanwhile; the wish does not wait for it.
            what = f"{self.record.id}: let it go on"
            await tried(_log, self._abandon_capture(), what)
            if (why := self._held_still.why) is not None:
                await self.show_still(why)
        there = await self._is_there()
        await self.decide(
            partial(
                wishes.not_suspended,
                machine_is_there=there,
                unwind_reason=Reason.STOPPED.value,
            )
        )
        if not there:
            text = f"the memory is lost, the disk is kept: {error.text()}"
        elif self.record.phase is Phase.RUNNING:
            goes_on = "it is to go on" if self._held_still.why else "it goes on"
            text = f"{goes_on}: {error.text()}"
        else:
            text = f"it is shut down instead: {error.text()}"
        self.tell(
            "SuspendFailed", f"the sandbox could not be suspended; {text}", warn=True
        )

    async def _is_there(self) -> bool:
        """Where it is to be ended anyway, a hypervisor that does not say changes nothing."""
        try:
            machine, _ = await self._shared.observer.look(self)
        except DriverError:
            after = wishes.asked_after(Wish.GO_ON, wishes.asked_of(self.record))
            if after == wishes.RUNNING:
                raise
            return True
        return machine in {MachineState.READY, MachineState.STALLED}

    async def _drop_memory(self) -> None:
        """The next start is a cold boot. The memory goes last: a machine may be loaded from it,
        and the record may name it.
        """
        ref, phase = self.record.memory, self.record.phase
        if phase is Phase.RESUMING:
            await self._unwind(Reason.STOPPED)
        if ref is None or phase not in {
            Phase.SUSPENDED,
            Phase.RESUMING,
            Phase.FAILED,
            Phase.STOPPED,
        }:
            await self.update(cold=False)
            return
        await self.update(phase=Phase.STOPPED, memory=None, failure=None, cold=False)
        if ref.kind == "suspended":
            await self._shared.ports.memory_store.remove(ref.directory)
        self.tell(
            "MemoryDropped", "the memory was dropped; the disk is kept", warn=True
        )
