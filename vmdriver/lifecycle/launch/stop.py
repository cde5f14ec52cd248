"""What follows an end that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from vmdriver.errors import DriverError
from vmdriver.lifecycle.engine import measures
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.ledger import Scope
from vmdriver.lifecycle.engine.observer import Seen
from vmdriver.lifecycle.engine.resource import FROZEN
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.stopwatch import Stopwatch
from vmdriver.lifecycle.launch.resources import Layers
from vmdriver.lifecycle.ports.guest import Guest
from vmdriver.lifecycle.ports.host import Disks, Hypervisor
from vmdriver.model.phase import DomainState, MachineState, Phase
from vmdriver.model.record import layers_of
from vmdriver.model.runs import Reason


class Capturing(Protocol):
    """What a stop has to know of captures: one may hold the machine still."""

    async def settle_layer(self, sandbox: Sandbox, *, regardless: bool = False) -> None:
        """Have the record say which layer the machine writes to. DriverError."""

    async def abandon(self, sandbox: Sandbox) -> None:
        """Give back what it holds. DriverError."""


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Actions STOP and DELETE. Each may be repeated from its beginning. `forget` is called when the
    sandbox is gone; `grace_s`: how long its guest may take to flush its file systems.
    """

    capture: Capturing
    giving_back: GivingBack
    hypervisor: Hypervisor
    guest: Guest
    disks: Disks
    layers: Layers
    forget: Callable[[str], None]
    grace_s: float

    async def stop(self, sandbox: Sandbox, seen: Seen) -> None:
        """End the machine. Memory that is kept already stays."""
        watch = Stopwatch()
        # Frozen still, or not told yet what it must know: it may not answer.
        coming_back = sandbox.record.phase is Phase.RESUMING
        if sandbox.record.phase is not Phase.STOPPING:
            await sandbox.note(phase=Phase.STOPPING, unwind_reason=Reason.STOPPED.value)
        plan = sandbox.record.plan
        still = sandbox.ledger.held(Scope.CAPTURE)
        # A guest that was frozen for a capture was flushed then.
        silent = coming_back or sandbox.ledger.get(FROZEN) is not None
        if plan is not None and seen.machine is MachineState.READY and not silent:
            with watch.step("flush"):
                await self._flush(sandbox, plan.domain)
        if still:
            # Which layer it writes to can be seen only while it is there.
            await self.capture.settle_layer(sandbox, regardless=True)
        with watch.step("release"):
            await self.giving_back.run(sandbox, Reason.STOPPED)
        if still:
            await self.capture.abandon(sandbox)
        sandbox.merge_due = True
        memory = sandbox.record.memory
        kept = memory is not None and not memory.consumed
        await sandbox.update(
            phase=Phase.SUSPENDED if kept else Phase.STOPPED,
            memory=memory if kept else None,
            failure=None,
            crash_restarts=0,
            note="",
        )
        sandbox.tell("Stopped", f"the machine was stopped in {watch.text()}")
        measures.took("stopped", sandbox.record.id, watch)

    async def _flush(self, sandbox: Sandbox, domain: str) -> None:
        try:
            state = await self.hypervisor.observe(domain)
            if state is not DomainState.RUNNING:
                return  # such as one that was being resumed: there is nobody to ask
            await self.guest.flush(domain, max(self.grace_s, 0.01))
        except DriverError as error:
            text = f"the guest did not flush its file systems: {error.text()}"
            sandbox.tell("FlushFailed", text, warn=True)

    async def delete(self, sandbox: Sandbox, _: Seen) -> None:
        """Give everything back; then the sandbox is gone."""
        watch = Stopwatch()
        if sandbox.record.phase is not Phase.DELETING or sandbox.unsaved:
            await sandbox.note(phase=Phase.DELETING, unwind_reason=Reason.STOPPED.value)
        with watch.step("release"):
            await self.giving_back.everything(sandbox, Reason.STOPPED)
        # A launch that was cut off may have named layers and not got to making its own, and one
        # that could not be removed when the record left it is named by nobody. What others made
        # for it, a template or a source, is below all of its own: no record leaves that.
        record = sandbox.record
        with watch.step("layers"):
            own = await self.disks.layers(record.id)
            await self.layers.drop(record.id, layers_of(record).union(own))
        with watch.step("record"):
            await sandbox.vanish(self.forget)
        measures.took("deleted", record.id, watch)
