"""All sandboxes of this driver. RPCs end here: they store an intent and wake a worker;
nothing is done in a handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pydantic import SecretStr

from vmdriver.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    Refused,
    TimedOut,
    Unavailable,
)
from vmdriver.lifecycle import requests, sweep
from vmdriver.lifecycle.disk_fork import fork_source
from vmdriver.lifecycle.hold import Shared
from vmdriver.lifecycle.housekeeping import Housekeeping
from vmdriver.lifecycle.ledger import Ledger, Scope
from vmdriver.lifecycle.ports import Guard, JournalOpener, no_checkpoint
from vmdriver.lifecycle.settings import Settings
from vmdriver.lifecycle.steps import LAYER, LEASE
from vmdriver.lifecycle.worker import SandboxWorker
from vmdriver.model.condition import Snapshot
from vmdriver.model.ids import check_sandbox_id
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.plan import Lease
from vmdriver.model.record import (
    MAIN_PROCESS_EXITED,
    ExtensionState,
    SandboxRecord,
    layers_of,
    utc_now,
)
from vmdriver.model.spec import SandboxSpec

_log = logging.getLogger(__name__)
_STOP_SLACK_S = 30.0
_DELETE_WAIT_S = 30.0
_DOWN = {Phase.STOPPED, Phase.SUSPENDED}


class Manager:
    """Knows every sandbox. `recover` must have returned before anything else is asked."""

    def __init__(
        self,
        shared: Callable[[Manager], Shared],
        journals: JournalOpener,
        settings: Settings,
        checkpoint: Guard = no_checkpoint,
    ) -> None:
        self.workers: dict[str, SandboxWorker] = {}
        self.settings = settings
        self._journals = journals
        self._checkpoint = checkpoint
        self._shared = shared(self)
        self.extensions = self._shared.extensions
        self.templates = self._shared.templates
        self.warm_pool = self._shared.warm_pool
        self._creating: dict[str, SandboxRecord] = {}
        self.housekeeping = Housekeeping(
            self.workers.values, self._shared.ports.disks, settings
        )

    # --- start and end

    async def recover(self) -> None:
        """Read everything from disk, remove what nobody claims, and let every worker
        take up its work.
        """
        ports = self._shared.ports
        for record in await ports.records.load_all():
            ledger = Ledger(self._journals(record.id), self._checkpoint)
            held = ledger.get(LEASE)
            if held is not None:
                self._shared.launcher.pool.adopt(
                    record.id, Lease.model_validate(held.data)
                )
            self.workers[record.id] = SandboxWorker(record, ledger, self._shared)
        ports.hypervisor.on_change(self._hint)
        await self._shared.templates.recover()
        await sweep.remove_orphans(ports, set(self.workers), self.settings.instance)
        await sweep.remove_unneeded_files(
            ports, self._shared.launcher.places, self.records(), self._layers_begun()
        )
        # Only now: what it makes belongs to nobody, as what was swept did.
        await self._shared.warm_pool.recover()
        for worker in self.workers.values():
            if not _at_rest(worker):
                worker.start()
        self.housekeeping.start()

    def _layers_begun(self) -> set[str]:
        entries = (worker.ledger.get(LAYER) for worker in self.workers.values())
        begun = {entry.data["path"] for entry in entries if entry is not None}
        return begun | self._shared.templates.layers()

    async def close(self) -> None:
        """Let go: workers end, machines stay."""
        self._shared.hub.close()
        self.housekeeping.stop()
        await self.close_background()
        await asyncio.gather(*(worker.close() for worker in self.workers.values()))

    def _hint(self, domain: str) -> None:
        for worker in self.workers.values():
            plan = worker.record.plan
            if plan is not None and plan.domain == domain:
                worker.hint()

    async def close_background(self) -> None:
        """End what is nobody's: builds of templates and machines that wait."""
        await asyncio.gather(self.templates.close(), self.warm_pool.close())

    def records(self) -> list[SandboxRecord]:
        """Of every sandbox, those among them that are just being accepted."""
        return [w.record for w in self.workers.values()] + list(self._creating.values())

    def layers_of_others(self, sandbox_id: str) -> set[str]:
        """Every layer that another sandbox than this one needs."""
        others = (layers_of(r) for r in self.records() if r.id != sandbox_id)
        shared = self._shared
        return shared.templates.layers().union(shared.warm_pool.layers(), *others)

    def host_snapshots(self) -> tuple[int, int]:
        """Number and bytes of every sandbox's snapshots."""
        entries = [e for record in self.records() for e in record.snapshots]
        return len(entries), sum(entry.stored_bytes for entry in entries)

    def forget(self, sandbox_id: str) -> None:
        """The sandbox is gone."""
        self.workers.pop(sandbox_id, None)

    # --- what the gateway asks

    def snapshots(self) -> list[Snapshot]:
        """Every sandbox as it is shown, sorted by name, then id."""
        return sorted(
            (w.snapshot for w in self.workers.values()), key=lambda s: (s.name, s.id)
        )

    def find(self, sandbox_id: str, name: str) -> SandboxWorker:
        """By id, which must exist, else by name. InvalidRequest, NotFound, Refused if
        the name is not unique.
        """
        if sandbox_id:
            worker = self.workers.get(check_sandbox_id(sandbox_id, "sandbox_id"))
            if worker is None:
                raise NotFound(f"sandbox {sandbox_id} is not known")
            return worker
        if not name:
            raise InvalidRequest("sandbox_id", "is empty, and so is sandbox_name")
        matches = [w for w in self.workers.values() if w.record.spec.name == name]
        if not matches:
            raise NotFound(f"no sandbox is named {name!r}")
        if len(matches) > 1:
            raise Refused(
                f"{len(matches)} sandboxes are named {name!r}",
                resolution="ask by sandbox_id",
            )
        return matches[0]

    def validate(self, spec: SandboxSpec) -> None:
        """Whether a create of this spec would be accepted now."""
        requests.check(spec, self.settings)
        fork_source(self.workers.values(), spec)
        requests.check_admission(spec, self.records(), self.settings)

    async def create(self, spec: SandboxSpec, token: SecretStr | None) -> None:
        """Accept a sandbox, durably. The machine comes up afterwards."""
        if spec.id in self.workers or spec.id in self._creating:
            raise AlreadyExists(f"sandbox {spec.id} exists")
        self.validate(spec)
        now = utc_now()
        active = self._shared.extensions.active_for(spec)
        record = SandboxRecord(
            spec=spec,
            created_at=now,
            changed_at=now,
            extensions=ExtensionState(active=active),
        )
        source = fork_source(self.workers.values(), spec)
        if source is not None:
            await source[0].allow_fork(spec)
            # Looked up again: it may have gone while the extensions were asked.
            worker, entry = fork_source(self.workers.values(), spec) or source
            record = record.model_copy(
                update={
                    "layers": entry.layers,
                    "inherited_layers": len(entry.layers),
                    "base": worker.record.base,
                    "image_digest": worker.record.image_digest,
                }
            )
            if spec.id in self.workers or spec.id in self._creating:
                raise AlreadyExists(f"sandbox {spec.id} exists")
        self._creating[spec.id] = record
        try:
            await self._shared.ports.records.create(record, token)
            worker = SandboxWorker(
                record, Ledger(self._journals(spec.id), self._checkpoint), self._shared
            )
            self.workers[spec.id] = worker
        finally:
            del self._creating[spec.id]
        worker.announce()
        worker.start()

    async def stop(self, sandbox_id: str, name: str) -> None:
        """Returns when the machine is down, its memory kept if that is its way to stop.
        Idempotent. TimedOut if it does not come down.
        """
        worker = self.find(sandbox_id, name)
        _refuse_if_deleting(worker)
        if worker.record.intent in {Intent.STOPPED, Intent.SUSPENDED}:
            worker.start()
        elif requests.stop_mode(worker.record.spec, self.settings) == "suspend":
            await worker.set_intent(Intent.SUSPENDED, stop_anyway=True)
        else:
            await worker.set_intent(Intent.STOPPED)
        # A delete that comes meanwhile ends the machine too: then until it is gone.
        await worker.until(
            lambda record: record.phase in _DOWN or record.intent is Intent.RUNNING,
            self.stop_limit_s(),
        )
        if not worker.gone and worker.record.intent is Intent.RUNNING:
            raise Refused(
                f"sandbox {worker.record.id} was started again while it was being "
                "stopped"
            )

    async def start(self, sandbox_id: str, name: str) -> None:
        """Accept a start, durably; does not wait for the machine. Idempotent."""
        worker = self.find(sandbox_id, name)
        _refuse_if_deleting(worker)
        record = worker.record
        if (
            record.phase in {Phase.FAILING, Phase.FAILED}
            and record.intent is Intent.RUNNING
        ):
            await self._start_failed(worker)
        elif record.intent is not Intent.RUNNING:
            self._check_memory(worker)
            await worker.set_intent(Intent.RUNNING, crash_restarts=0)
        else:
            worker.start()

    async def _start_failed(self, worker: SandboxWorker) -> None:
        failure = worker.record.failure
        if failure is not None and failure.reason == MAIN_PROCESS_EXITED:
            raise Refused(
                f"sandbox {worker.record.id}: {failure.message}",
                reason=MAIN_PROCESS_EXITED,
                resolution=(
                    "its main process is not run twice; stop the sandbox "
                    "first, or delete it"
                ),
            )
        if worker.record.phase is Phase.FAILING:
            raise Unavailable(
                f"sandbox {worker.record.id} is being cleaned up; try again"
            )
        memory = worker.record.memory
        kept = memory is not None and not memory.consumed
        await worker.set_intent(
            Intent.RUNNING,
            phase=Phase.SUSPENDED if kept else Phase.STOPPED,
            failure=None,
            crash_restarts=0,
        )

    def stop_limit_s(self) -> float:
        """The longest that a stop may take."""
        return (
            self.settings.stop_grace_s + self.settings.freeze_timeout_s + _STOP_SLACK_S
        )

    def _check_memory(self, worker: SandboxWorker) -> None:
        others = [w.record for w in self.workers.values() if w is not worker]
        requests.check_memory(worker.record.spec, others, self.settings)

    async def delete(self, sandbox_id: str, name: str) -> bool:
        """Remove a sandbox. False: it is not known. Returns when it is gone, or after
        30 s while it is going.
        """
        try:
            worker = self.find(sandbox_id, name)
        except NotFound:
            return False
        if worker.record.intent is not Intent.DELETED:
            await worker.set_intent(Intent.DELETED)
        else:
            worker.start()
        try:
            await worker.until(lambda _: False, _DELETE_WAIT_S)
        except TimedOut:
            _log.warning("delete of %s goes on in the background", worker.record.id)
        return True


def _refuse_if_deleting(worker: SandboxWorker) -> None:
    if worker.record.intent is Intent.DELETED:
        raise Refused(f"sandbox {worker.record.id} is being deleted", reason="Deleting")


def _at_rest(worker: SandboxWorker) -> bool:
    record = worker.record
    held = worker.ledger.held(Scope.RUNTIME) + worker.ledger.held(Scope.CAPTURE)
    if held or record.reverting or record.intent is Intent.DELETED:
        return False
    if record.intent is Intent.RUNNING:
        return record.phase is Phase.FAILED
    return record.phase in _DOWN
