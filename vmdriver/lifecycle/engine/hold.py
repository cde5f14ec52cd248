"""A sandbox's record together with what is held for it: the ground that launches and
ends stand on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmdriver.lifecycle.engine.broadcast import Hub
from vmdriver.lifecycle.engine.giving_back import GivingBack
from vmdriver.lifecycle.engine.ledger import Ledger
from vmdriver.lifecycle.engine.observer import Observer
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.standstill import Waker
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.launch import endings
from vmdriver.lifecycle.launch.launcher import Launcher
from vmdriver.lifecycle.launch.resources import Undoer
from vmdriver.lifecycle.memory.capture import Capture
from vmdriver.lifecycle.memory.layers import LayerUpkeep
from vmdriver.lifecycle.memory.resume import Resume
from vmdriver.lifecycle.memory.snapshot import Snapshots
from vmdriver.lifecycle.memory.suspend import Suspend
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.pool import WarmPool
from vmdriver.lifecycle.templates.template import Templates
from vmdriver.model.phase import Phase
from vmdriver.model.record import Failure, SandboxRecord
from vmdriver.model.runs import Reason, RestoreKind

_LAUNCH_RETRIES = 1


@dataclass(frozen=True)
class Shared:
    """What all workers share."""

    ports: Ports
    settings: Settings
    launcher: Launcher
    extensions: ExtensionRunner
    undoer: Undoer
    giving_back: GivingBack
    observer: Observer
    hub: Hub
    forget: Callable[[str], None]
    """Called when the sandbox is gone."""
    layers_of_others: Callable[[str], set[str]]
    """Every root disk layer that somebody else than this sandbox needs."""
    templates: Templates
    warm_pool: WarmPool
    capture: Capture
    suspend: Suspend
    resume: Resume
    snapshots: Snapshots
    upkeep: LayerUpkeep


class SandboxHold(Sandbox):
    """The ground that what is done with a sandbox stands on; it goes when the last of that is an
    object that is given the handle.
    """

    def __init__(self, record: SandboxRecord, ledger: Ledger, shared: Shared) -> None:
        ports = shared.ports
        super().__init__(
            record,
            ledger,
            records=ports.records,
            hub=shared.hub,
            abandon=ports.hypervisor.abandon,
        )
        self._shared = shared
        self._waker = Waker(shared.ports)

    async def _tell_restored(self, kind: RestoreKind) -> None:
        """after_restore hooks; their errors are shown and change nothing."""
        for problem in await self._shared.extensions.after_restore(
            self.record, self.ledger, kind
        ):
            self.tell("ExtensionFailed", problem, warn=True)

    async def _tail(self) -> str:
        plan = self.record.plan
        return await self._shared.ports.disks.console_tail(plan.console) if plan else ""

    async def _end(self, failure: Failure) -> None:
        self.tell(failure.reason, failure.message, warn=True)
        await self.update(
            phase=Phase.FAILING,
            failure=failure,
            unwind_reason=Reason.PROCESS_EXITED.value,
        )

    def _may_launch_again(self) -> bool:
        return self.record.launch_retries < _LAUNCH_RETRIES

    async def _launch_again(self, failure: Failure, reason: Reason) -> None:
        """Clean up after a launch whose QEMU has ended, killed for want of memory perhaps, and
        try once more.
        """
        failure = endings.cut_off(failure)
        text = f"the machine is started once more: {failure.message}"
        self.tell("LaunchCutOff", text, warn=True)
        await self.update(
            phase=Phase.FAILING,
            failure=failure,
            unwind_reason=reason.value,
            launch_retries=self.record.launch_retries + 1,
        )

    async def _unwind(self, reason: Reason) -> None:
        """Give back what belongs to the run."""
        await self._shared.giving_back.run(self, reason)
