"""Going down with the memory kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from vmdriver.errors import DriverError, NotFound, Refused
from vmdriver.host.retry import tried
from vmdriver.lifecycle.engine import measures
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.observer import Observer, Seen
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.memory.capture import Capture, refuse_unkept
from vmdriver.lifecycle.ports.memory import MachineMemory, MemoryStore
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.model import wishes
from vmdriver.model.checkpoint import MemoryRef
from vmdriver.model.phase import Intent, MachineState, Phase
from vmdriver.model.runs import Reason
from vmdriver.model.wishes import Wish

_log = logging.getLogger(__name__)
_MEMORY_UNDER_WAY = {Phase.SUSPENDING, Phase.FAILING, Phase.STOPPING, Phase.DELETING}
"""Whether there is memory to drop is known a turn later."""


@dataclass(frozen=True, kw_only=True)
class Suspend:
    """Action SUSPEND. It is begun again after a crash; ledger, manifest and record say how
    far it came.
    """

    memory: MachineMemory
    store: MemoryStore
    paths: Paths
    capture: Capture
    observer: Observer
    extensions: ExtensionRunner
    giving_back: GivingBack

    async def suspend(self, sandbox: Sandbox, seen: Seen) -> None:
        """Keep the memory, end the machine; or as before, and the reason is shown."""
        paths = self.paths.of(sandbox.record.id)
        if sandbox.record.phase is not Phase.SUSPENDING:
            await self.store.remove(paths.suspended)
            await sandbox.update(phase=Phase.SUSPENDING, memory=None)
        watch = Stopwatch()
        try:
            ref = await self._published(paths.suspended)
            if ref is None:
                await self.capture.abandon(sandbox)
                ref = await self._take(sandbox, seen.machine, paths.suspended, watch)
        except DriverError as error:
            await self._not_suspended(sandbox, error)
            return
        with watch.step("release"):
            await self.giving_back.run(sandbox, Reason.SUSPENDED)
            await self.capture.abandon(sandbox)
        size = f"{ref.stored_bytes / 2**20:.0f} MiB"
        sandbox.tell("Suspended", f"memory kept ({size}) in {watch.text()}")
        measures.took("suspended", sandbox.record.id, watch)
        await sandbox.update(
            phase=Phase.SUSPENDED, memory=ref, failure=None, note="", crash_restarts=0
        )

    async def _published(self, directory: str) -> MemoryRef | None:
        """The checkpoint, if an earlier process came that far."""
        try:
            manifest, digest = await self.store.read(directory)
        except (NotFound, Refused):
            return None
        return MemoryRef(
            directory=directory,
            digest=digest,
            kind=manifest.kind,
            stored_bytes=manifest.stored_bytes,
        )

    async def _take(
        self, sandbox: Sandbox, machine: MachineState, target: str, watch: Stopwatch
    ) -> MemoryRef:
        plan, capture = sandbox.record.plan, self.capture
        if machine is MachineState.STALLED:
            raise Refused("the machine stands still", reason="StandsStill")
        if plan is None or machine is not MachineState.READY:
            raise Refused("the machine is not there any more", reason="MachineLost")
        refuse_unkept(plan)
        with watch.step("hooks"):
            await self.extensions.before_capture(
                sandbox.record,
                sandbox.ledger,
                "before_suspend",
                lambda extension, context: extension.before_suspend(context, plan),
            )
        memory = await capture.begin(sandbox, plan)
        write = partial(self.memory.capture, plan.domain, memory, plan.memory_mib)
        captured, boot_id = await capture.write(sandbox, plan, watch, write)
        return await capture.publish(
            sandbox,
            plan,
            captured,
            kind="suspended",
            directory=target,
            guest_boot_id=boot_id,
            watch=watch,
        )

    async def _not_suspended(self, sandbox: Sandbox, error: DriverError) -> None:
        """As before, if the machine is there; a stop that was asked for happens anyway."""
        sandbox.refusal = error
        if (
            wishes.asked_after(Wish.GO_ON, wishes.asked_of(sandbox.record))
            == wishes.RUNNING
        ):
            # It may have its name already: the next process would take it for this suspension,
            # and the machine goes on from here.
            paths = self.paths.of(sandbox.record.id)
            await self.store.unpublish(paths.suspended)
            # Tried again while it runs, and shown meanwhile; the wish does not wait for it.
            what = f"{sandbox.record.id}: let it go on"
            await tried(_log, self.capture.abandon(sandbox), what)
            if (why := self.capture.why_held(sandbox)) is not None:
                await sandbox.show_still(why)
        there = await self._is_there(sandbox)
        await sandbox.decide(
            partial(
                wishes.not_suspended,
                machine_is_there=there,
                unwind_reason=Reason.STOPPED.value,
            )
        )
        if not there:
            text = f"the memory is lost, the disk is kept: {error.text()}"
        elif sandbox.record.phase is Phase.RUNNING:
            held = self.capture.why_held(sandbox)
            goes_on = "it is to go on" if held else "it goes on"
            text = f"{goes_on}: {error.text()}"
        else:
            text = f"it is shut down instead: {error.text()}"
        sandbox.tell(
            "SuspendFailed", f"the sandbox could not be suspended; {text}", warn=True
        )

    async def _is_there(self, sandbox: Sandbox) -> bool:
        """Where it is to be ended anyway, a hypervisor that does not say changes nothing."""
        try:
            machine = (await self.observer.look(sandbox)).machine
        except DriverError:
            after = wishes.asked_after(Wish.GO_ON, wishes.asked_of(sandbox.record))
            if after == wishes.RUNNING:
                raise
            return True
        return machine in {MachineState.READY, MachineState.STALLED}

    async def drop_memory_if_cold(self, sandbox: Sandbox) -> None:
        """Where the next start is to be a cold boot. The memory goes last: a machine may be loaded
        from it, and the record may name it.
        """
        ref, phase = sandbox.record.memory, sandbox.record.phase
        kept = sandbox.record.intent is not Intent.DELETED
        if not (sandbox.record.cold and kept) or phase in _MEMORY_UNDER_WAY:
            return
        if phase is Phase.RESUMING:
            await self.giving_back.run(sandbox, Reason.STOPPED)
        if ref is None or phase not in {
            Phase.SUSPENDED,
            Phase.RESUMING,
            Phase.FAILED,
            Phase.STOPPED,
        }:
            await sandbox.update(cold=False)
            return
        await sandbox.update(phase=Phase.STOPPED, memory=None, failure=None, cold=False)
        if ref.kind == "suspended":
            await self.store.remove(ref.directory)
        sandbox.tell(
            "MemoryDropped", "the memory was dropped; the disk is kept", warn=True
        )
