"""All sandboxes of this driver. RPCs end here: they store an intent and wake a worker;
nothing is done in a handler.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from pydantic import SecretStr

from vmdriver.errors import NotFound, Refused, StorageError, TimedOut
from vmdriver.lifecycle.control import checks
from vmdriver.lifecycle.control.admission import Admission, Trace
from vmdriver.lifecycle.control.image_upkeep import ImageUpkeep
from vmdriver.lifecycle.control.maintenance import Housekeeping
from vmdriver.lifecycle.control.network_news import NetworkReporter
from vmdriver.lifecycle.control.recover import Recovery
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.control.volume_jobs import VolumeJobs
from vmdriver.lifecycle.engine.broadcast import Broadcaster
from vmdriver.lifecycle.engine.ledger import Scope
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.extending import call_points as api
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.memory.resources import is_being_written
from vmdriver.lifecycle.memory.snapshot import Snapshots
from vmdriver.lifecycle.ports.host import Hypervisor
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.templates.pool import WarmPool
from vmdriver.lifecycle.templates.template import Templates
from vmdriver.model.condition import SandboxStatus
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord
from vmdriver.model.set_aside import SetAside
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.wishes import Wish

_log = logging.getLogger(__name__)
_STOP_SLACK_S = 30.0
_DELETE_WAIT_S = 30.0
_PATIENCE_S = 4.0
"""Beyond a stop's grace, for what comes before it, such as freezing the workload."""
NO_TRACE: Trace = {}
_DOWN = {Phase.STOPPED, Phase.SUSPENDED}


@dataclass(frozen=True, kw_only=True)
class Manager:
    """`recover` must have returned before anything else is asked."""

    sandboxes: Sandboxes
    settings: Settings
    hypervisor: Hypervisor
    broadcaster: Broadcaster
    extensions: ExtensionRunner
    templates: Templates
    warm_pool: WarmPool
    budget: MemoryBudget
    snapshot_jobs: Snapshots
    admission: Admission
    recovery: Recovery
    images: ImageUpkeep
    volume_jobs: VolumeJobs
    housekeeping: Housekeeping
    network_reporter: NetworkReporter

    # --- start and end

    async def recover(self) -> None:
        """Read everything from disk, remove what nobody claims, and let every worker
        take up its work.
        """
        await self.recovery.read()
        self.hypervisor.on_change(self._hint)
        self.network_reporter.start()
        await self.recovery.sweep(self.settings.instance)
        # Only now: what it makes belongs to nobody, as what was swept did.
        await self.warm_pool.recover()
        for worker in self.sandboxes.workers.values():
            if not _at_rest(worker):
                worker.start()
        self.housekeeping.start()
        self.images.start()

    async def close(self) -> None:
        """Let go: workers end, machines stay."""
        self.broadcaster.close()
        self.housekeeping.stop()
        await self.images.close()
        await self.close_background()
        await asyncio.gather(
            *(worker.close() for worker in self.sandboxes.workers.values())
        )

    def _hint(self, domain: str) -> None:
        for worker in self.sandboxes.workers.values():
            plan = worker.sandbox.record.plan
            if plan is not None and plan.domain == domain:
                worker.hint()
        self.warm_pool.hint(domain)

    async def close_background(self) -> None:
        """End what is unowned: builds of templates and machines that wait."""
        await asyncio.gather(self.templates.close(), self.warm_pool.close())
        await self.templates.leftovers.close()

    # --- what the gateway asks

    def statuses(self) -> list[SandboxStatus]:
        """Every sandbox as it is shown, sorted by name, then id."""
        return self.sandboxes.statuses()

    def snapshot(self, sandbox_id: str, name: str) -> SandboxStatus:
        """One as it is shown: by id, which must exist, else by name. InvalidRequest, NotFound,
        Refused if the name is not unique.
        """
        found = self.sandboxes.look_up(sandbox_id, name)
        return found.status if isinstance(found, SetAside) else found.sandbox.status

    async def validate(self, spec: SandboxSpec, trace: Trace = NO_TRACE) -> None:
        """Whether a create of this spec would be accepted now."""
        await self.admission.validate(spec, trace)

    async def create(
        self, spec: SandboxSpec, token: SecretStr | None, trace: Trace = NO_TRACE
    ) -> None:
        """Accept a sandbox, durably. The machine comes up afterwards."""
        await self.admission.create(spec, token, trace)

    async def _ask(self, phase: api.CallPoint, worker: Worker, trace: Trace) -> None:
        await self.extensions.ask(
            phase, worker.sandbox.record, worker.sandbox.ledger, trace
        )

    async def stop(self, sandbox_id: str, name: str, trace: Trace = NO_TRACE) -> None:
        """Returns when the machine is down, its memory kept if that is its way to stop.
        Idempotent. TimedOut if it does not come down.
        """
        worker = self.sandboxes.find(sandbox_id, name)
        _refuse_if_deleting(worker)
        if worker.sandbox.record.intent not in {Intent.STOPPED, Intent.SUSPENDED}:
            await self.ask_to_stop(worker, trace)
        mode = checks.stop_mode(worker.sandbox.record.spec, self.settings)
        await worker.wish(Wish.STOP_SUSPENDED if mode == "suspend" else Wish.STOP)
        # A delete that comes meanwhile ends the machine too: then until it is gone.
        patience_s = self.settings.stop_grace_s + _PATIENCE_S
        try:
            await worker.sandbox.until(_is_down_or_wanted, patience_s)
        except TimedOut:
            if not is_being_written(worker.sandbox.ledger):
                await worker.wish(Wish.STOP_NOW)
            # Else that moves, or ends by itself.
            await worker.sandbox.until(
                _is_down_or_wanted, self.stop_limit_s() - patience_s
            )
        if not worker.sandbox.gone and worker.sandbox.record.intent is Intent.RUNNING:
            raise Refused(
                f"sandbox {worker.sandbox.record.id} was started again while it was being "
                "stopped"
            )

    async def ask_to_stop(self, worker: Worker, trace: Trace = NO_TRACE) -> None:
        """before_stop. Refused when an extension does not let it, or a delete came meanwhile."""
        await self._ask(api.CallPoint.BEFORE_STOP, worker, trace)
        _refuse_if_deleting(worker)

    async def start(self, sandbox_id: str, name: str) -> None:
        """Accept a start, durably; does not wait for the machine. Idempotent: what is wanted
        already is shown again, since a gateway's row says Starting until it is shown something
        else.
        """
        worker = self.sandboxes.find(sandbox_id, name)
        _refuse_if_deleting(worker)
        await self.admission.let_start(worker.sandbox.record)
        shown = worker.sandbox.status
        with self.budget.room_to_run(worker.sandbox.record):
            await worker.wish(Wish.START)
        if worker.sandbox.status is shown:
            worker.sandbox.announce()

    def stop_limit_s(self) -> float:
        """The longest that a stop may take."""
        return (
            self.settings.stop_grace_s + self.settings.freeze_timeout_s + _STOP_SLACK_S
        )

    async def delete(self, sandbox_id: str, name: str, trace: Trace = NO_TRACE) -> bool:
        """Remove a sandbox. False: it is not known. Returns when it is gone, or after
        30 s while it is going.
        """
        try:
            found = self.sandboxes.look_up(sandbox_id, name)
            if isinstance(found, SetAside):
                await self.recovery.take_down(found.id)
                worker = self.sandboxes.find(found.id, "")
            else:
                worker = found
        except NotFound:
            return False
        if worker.sandbox.record.intent is not Intent.DELETED:
            await self._ask(api.CallPoint.BEFORE_DELETE, worker, trace)
            try:
                await worker.wish(Wish.DELETE)
            except StorageError:
                # On a full disk, a delete is what helps. It is promised only when it is stored.
                await worker.wish(Wish.DELETE, regardless=True)
        else:
            await worker.wish(Wish.DELETE, regardless=True)
        try:
            await worker.sandbox.until(lambda _: False, _DELETE_WAIT_S)
        except TimedOut:
            if worker.sandbox.unsaved:
                raise StorageError(
                    f"the delete of sandbox {worker.sandbox.record.id} cannot be stored: "
                    f"{worker.sandbox.trouble}"
                ) from None
            _log.warning(
                "delete of %s goes on in the background", worker.sandbox.record.id
            )
        return True


def _is_down_or_wanted(record: SandboxRecord) -> bool:
    down = record.phase in _DOWN and not record.reverting
    return down or record.intent is Intent.RUNNING


def _refuse_if_deleting(worker: Worker) -> None:
    if worker.sandbox.record.intent is Intent.DELETED:
        raise Refused(
            f"sandbox {worker.sandbox.record.id} is being deleted", reason="Deleting"
        )


def _at_rest(worker: Worker) -> bool:
    record = worker.sandbox.record
    held = worker.sandbox.ledger.held(Scope.RUNTIME) + worker.sandbox.ledger.held(
        Scope.CAPTURE
    )
    if record.memory is None:
        held += worker.sandbox.ledger.held(Scope.ATTACHED)
    if held or record.reverting or record.cold or record.intent is Intent.DELETED:
        return False
    if worker.sandbox.reconcile_due:
        return False
    if record.intent is Intent.RUNNING:
        return record.phase is Phase.FAILED
    return record.phase in _DOWN
