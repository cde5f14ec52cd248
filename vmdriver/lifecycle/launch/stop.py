"""What follows an end: of the machine by itself, or one that was asked for."""

from __future__ import annotations

import asyncio
import logging

from vmdriver.errors import DriverError, Refused
from vmdriver.host import facts
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine.ledger import MACHINE, Scope
from vmdriver.lifecycle.engine.resource import FROZEN, LAYER, OVERLAY
from vmdriver.lifecycle.launch import endings
from vmdriver.lifecycle.memory.capture import CaptureActions
from vmdriver.lifecycle.memory.kept_memory import KeptMemory, unneeded_memory
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import Action, DomainState, MachineState, Phase
from vmdriver.model.record import layers_of
from vmdriver.model.runs import Reason

_log = logging.getLogger(__name__)


class EndActions(CaptureActions):
    """Actions RECORD_END, RECOVER_LOST, CLEAN_UP, STOP and DELETE. Each may be repeated
    from its beginning.
    """

    async def _record_end(self, machine: MachineState, report: GuestReport) -> None:
        record = self.record
        retry = record.crash_restarts < self._shared.settings.crash_restarts
        tail = await self._tail()
        failure = endings.of_machine(machine, report, record.phase, tail, retry)
        crashed = machine is MachineState.CRASHED and record.phase is Phase.LAUNCHING
        if crashed and self._may_launch_again():
            await self._launch_again(failure, Reason.PROCESS_EXITED)
        else:
            await self._end(failure)

    async def _recover_lost(self) -> None:
        if self.record.host_boot_id != facts.boot_id():
            self.tell(
                "HostRebooted",
                "the host was restarted; the machine is started again from its disk",
            )
            await self.update(
                phase=Phase.LAUNCHING, unwind_reason=Reason.PROCESS_EXITED.value
            )
            return
        retry = self.record.crash_restarts < self._shared.settings.crash_restarts
        await self._end(
            endings.of_machine(
                MachineState.ABSENT, GuestReport(), self.record.phase, "", retry
            )
        )

    async def _clean_up(self) -> None:
        await self._unwind(Reason(self.record.unwind_reason or Reason.PROCESS_EXITED))
        failure = self.record.failure
        if failure is not None and failure.will_retry:
            counted = 0 if failure.in_launch else 1
            await self.update(
                phase=Phase.LAUNCHING,
                crash_restarts=self.record.crash_restarts + counted,
            )
        else:
            await self.update(phase=Phase.FAILED)

    async def _stop(self, machine: MachineState) -> None:
        begun = asyncio.get_running_loop().time()
        # Frozen still, or not told yet what it must know: it may not answer.
        coming_back = self.record.phase is Phase.RESUMING
        if self.record.phase is not Phase.STOPPING:
            await self.note(phase=Phase.STOPPING, unwind_reason=Reason.STOPPED.value)
        plan = self.record.plan
        still = self.ledger.held(Scope.CAPTURE)
        # A guest that was frozen for a capture was flushed then.
        silent = coming_back or self.ledger.get(FROZEN) is not None
        if plan is not None and machine is MachineState.READY and not silent:
            await self._flush(plan.domain)
        if still:
            # Which layer it writes to can be seen only while it is there.
            await self._settle_layer(regardless=True)
        await self._unwind(Reason.STOPPED)
        if still:
            await self._abandon_capture()
        self.merge_due = True
        kept = self.record.memory is not None and not self.record.memory.consumed
        await self.update(
            phase=Phase.SUSPENDED if kept else Phase.STOPPED,
            memory=self.record.memory if kept else None,
            failure=None,
            crash_restarts=0,
            note="",
        )
        self.tell(
            "Stopped",
            "the machine was stopped in "
            f"{asyncio.get_running_loop().time() - begun:.2f} s",
        )

    async def _flush(self, domain: str) -> None:
        grace_s = self._shared.settings.stop_grace_s
        try:
            state = await self._shared.ports.hypervisor.observe(domain)
            if state is not DomainState.RUNNING:
                return  # such as one that was being resumed: there is nobody to ask
            await self._shared.ports.guest.flush(domain, max(grace_s, 0.01))
        except DriverError as error:
            text = f"the guest did not flush its file systems: {error.text()}"
            self.tell("FlushFailed", text, warn=True)

    async def _merge_layers(self) -> None:
        """Write the topmost layer into the one below while nobody else needs that one, so
        that a chain does not grow with every snapshot that ever was.
        """
        ports, places = self._shared.ports, self._shared.launcher.places
        remembered = KeptMemory(ports.memory_store, places)
        while len(self.record.layers) - self.record.inherited_layers > 1:
            *rest, below, top = self.record.layers
            kept = (e.layers for e in self.record.snapshots)
            others = self._shared.layers_of_others(self.record.id)
            if below in others or any(below in layers for layers in kept):
                return
            if await remembered.needs(self.record) & {below, top}:
                return  # kept memory is restored on these very files
            await ports.disks.merge_layer(top, below)
            await finished(self._stand_below(top, (*rest, below)))

    async def _stand_below(self, top: str, layers: tuple[str, ...]) -> None:
        await self.update(layers=layers)
        await self._shared.ports.disks.remove(top)

    async def _merge_if_due(self) -> bool:
        """Once after each stop, when whoever waits for it has been answered: it may take long,
        and a start does not wait for it. True: it was.
        """
        down = self.record.phase in {Phase.STOPPED, Phase.SUSPENDED}
        if not (self.merge_due and down):
            return False
        self.underway.doing = Action.MERGE
        try:
            await self._merge_layers()
        except DriverError as error:
            text = f"the disk's layers stay as they are: {error.text()}"
            self.tell("MergeFailed", text, warn=True)
        self.merge_due = False
        return True

    async def _delete(self) -> None:
        if self.record.phase is not Phase.DELETING or self.unsaved:
            await self.note(phase=Phase.DELETING, unwind_reason=Reason.STOPPED.value)
        await self._shared.giving_back.everything(self, Reason.STOPPED)
        # A launch that was cut off may have named layers and not got to making its own, and one
        # that could not be removed when the record left it is named by nobody. What others made
        # for it, a template or a source, is below all of its own: no record leaves that.
        own = await self._shared.ports.disks.layers(self.record.id)
        needless = layers_of(self.record).union(own)
        await self._shared.undoer.drop_layers(self.record.id, needless)
        await self.vanish(self._shared.forget)

    async def _tidy(self) -> None:
        """At rest: remove layers and memory that a step left, which was cut off, or could not
        remove or note something. What cannot be removed is tried again at the next rest.
        """
        if not self.untidy:
            return
        shared = self._shared
        held = (self.ledger.get(key) for key in (OVERLAY, LAYER))
        begun = {entry.data["path"] for entry in held if entry is not None}
        try:
            if self.unsaved:
                await self.update()  # what the one on disk names is needed until then
            record = self.record
            own = set(await shared.ports.disks.layers(record.id))
            needless = own - layers_of(record) - begun
            if needless and self.ledger.get(MACHINE) is not None:
                await self._check_unused(needless)
            await shared.undoer.drop_layers(record.id, needless)
            places = shared.launcher.places
            for directory in await unneeded_memory(shared.ports, places, record):
                await shared.ports.memory_store.remove(directory)
        except DriverError as error:
            text = "files that it does not need stay for now"
            _log.warning("%s: %s: %s", self.record.id, text, error.text())
            return
        self.untidy = False

    async def _check_unused(self, layers: set[str]) -> None:
        """Refused where the machine has one of these open, whatever the record says."""
        top, memory = self.record.layers[-1], self._shared.ports.memory
        for path in sorted(layers):
            if await memory.holds(path, top):
                name = path.rpartition("/")[2]
                raise Refused(f"the machine may be using {name}", reason="LayerInUse")
