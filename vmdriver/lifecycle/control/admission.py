"""Accepts new sandboxes: asks the extensions, checks, stores. What is not accepted leaves nothing
behind, also after a crash in the middle.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from vmdriver.errors import AlreadyExists, DriverError, TimedOut, Unavailable
from vmdriver.host.retry import tried
from vmdriver.host.threads import finished
from vmdriver.lifecycle.control import checks
from vmdriver.lifecycle.control.from_snapshot import fork_source
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.engine.ledger import Ledger
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.worker import Hire, Worker
from vmdriver.lifecycle.extending.call_points import CallPoint
from vmdriver.lifecycle.extending.draft import Draft
from vmdriver.lifecycle.extending.plan_changes import changed_spec, draft_of, shape
from vmdriver.lifecycle.extending.runner import ExtensionRunner
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.devices import Devices
from vmdriver.lifecycle.launch.devices_asked import wanted_devices
from vmdriver.lifecycle.launch.host_mounts import HostMounts
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.resources import Layers
from vmdriver.lifecycle.launch.volumes import Volumes
from vmdriver.lifecycle.ports.host import Records
from vmdriver.lifecycle.ports.images import Images
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import ExtensionState, SandboxRecord, utc_now
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.wishes import Wish

_log = logging.getLogger(__name__)
_CLEAN_UP_WAIT_S = 30.0
Trace = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Admission:
    """The way in."""

    sandboxes: Sandboxes
    ledger: Callable[[str], Ledger]
    hire: Hire
    settings: Settings
    images: Images
    records: Records
    extensions: ExtensionRunner
    budget: MemoryBudget
    devices: Devices
    layers: Layers
    volumes: Volumes
    host_mounts: HostMounts
    allow_fork: Callable[[Sandbox, SandboxSpec], Awaitable[None]]
    """Asks a sandbox's extensions whether a new one may start from its snapshot."""

    async def validate(self, spec: SandboxSpec, trace: Trace) -> None:
        """Whether a create of this spec would be accepted now."""
        await self._asked(spec, trace)

    async def create(
        self, spec: SandboxSpec, token: SecretStr | None, trace: Trace
    ) -> None:
        """Accept a sandbox, durably. The machine comes up afterwards."""
        self._check_new(spec.id)
        asked, draft = await self._asked(spec, trace)
        record = await self._standing_on_its_source(asked)
        if draft is not None or record is not asked:
            # Both once more: extensions were asked meanwhile.
            self._check_new(spec.id)
            self._check_room(record)
        self.sandboxes.pending[spec.id] = record
        try:
            await self._store(record, token)
            worker = self.hire(record, self.ledger(spec.id))
            if draft is not None:
                await self._prepare(worker, spec, draft, trace)
            self.sandboxes.workers[spec.id] = worker
        finally:
            del self.sandboxes.pending[spec.id]
        worker.sandbox.announce()
        try:
            if draft is not None:
                await self.extensions.report(
                    CallPoint.AFTER_CREATE,
                    worker.sandbox.record,
                    worker.sandbox.ledger,
                    trace,
                )
        finally:
            worker.start()

    async def let_start(self, record: SandboxRecord) -> None:
        """Whether one that is down may come up as far as devices and folders of the host go.
        Refused, Exhausted.
        """
        if record.intent is not Intent.RUNNING or record.phase is Phase.FAILED:
            await self.devices.admit(record)
            await self.host_mounts.admit(record.spec)

    async def _store(self, record: SandboxRecord, token: SecretStr | None) -> None:
        """What its source has left to it while it was stored goes if that fails."""
        try:
            await self.records.create(record, token)
        except DriverError:
            drop = self.layers.drop(record.id, set(record.layers))
            await tried(_log, drop)
            raise

    def _check_new(self, sandbox_id: str) -> None:
        worker = self.sandboxes.workers.get(sandbox_id)
        if worker is not None and not worker.sandbox.record.extensions.accepted:
            raise Unavailable(
                f"sandbox {sandbox_id}: what an earlier create left is being given back; "
                "try again"
            )
        known = {*self.sandboxes.pending, *self.sandboxes.set_aside}
        if worker is not None or sandbox_id in known:
            raise AlreadyExists(f"sandbox {sandbox_id} exists")

    def _check(self, record: SandboxRecord) -> None:
        spec = record.spec
        checks.check(spec, self.settings)
        self.images.check(spec.image)
        fork_source(self.sandboxes.workers.values(), spec)
        self._check_room(record)

    def _check_room(self, record: SandboxRecord) -> None:
        """Exhausted when one sandbox more does not fit; Refused when its volumes are another's."""
        checks.check_count(self.sandboxes.others(record.id), self.settings)
        self.budget.check(record)
        self.devices.check_room(record)
        self.volumes.check(record.spec)

    async def _asked(
        self, spec: SandboxSpec, trace: Trace
    ) -> tuple[SandboxRecord, Draft | None]:
        """The record as extensions have shaped it, and it can be had. No draft: none follows
        phases.
        """
        extensions, now = self.extensions, utc_now()
        bare = SandboxRecord(spec=spec, created_at=now, changed_at=now)
        await self._look_at_host(bare)
        self._check(bare)
        activation = extensions.activate(
            spec.labels, spec.driver_config.get("extensions", {})
        )
        state = ExtensionState(
            active=activation.active, parameters=activation.parameters
        )
        record = bare.model_copy(update={"extensions": state})
        if not extensions.take_part(record):
            return record, None
        draft = draft_of(spec)
        ask = extensions.ask
        await ask(CallPoint.VALIDATE_REQUEST, record, None, trace)
        await ask(CallPoint.PREPARE_PLAN, record, None, trace, draft)
        state = state.model_copy(update={"accepted": False})
        record = self._shaped(record, spec, state, draft)
        await self._look_at_host(record)
        self._check(record)
        return record, draft

    async def _look_at_host(self, record: SandboxRecord) -> None:
        """Not after the rest: what is left of room is asked for without waiting after that."""
        if wanted_devices(record.spec):
            checks.check(record.spec, self.settings)
            await self.devices.admit(record)
        await self.host_mounts.admit(record.spec)

    def _shaped(
        self,
        record: SandboxRecord,
        asked: SandboxSpec,
        state: ExtensionState,
        draft: Draft,
    ) -> SandboxRecord:
        changes = draft.changes()
        planner.check_machine(shape(changes), self.settings)
        spec = changed_spec(asked, changes)
        state = state.model_copy(update={"changes": changes})
        return record.model_copy(update={"spec": spec, "extensions": state})

    async def _standing_on_its_source(self, record: SandboxRecord) -> SandboxRecord:
        spec = record.spec
        source = fork_source(self.sandboxes.workers.values(), spec)
        if source is None:
            return record
        await self.allow_fork(source[0].sandbox, spec)
        # Looked up again: it may have gone while the extensions were asked.
        worker, entry = fork_source(self.sandboxes.workers.values(), spec) or source
        return record.model_copy(
            update={
                "layers": entry.layers,
                "inherited_layers": len(entry.layers),
                "base": worker.sandbox.record.base,
                "image_digest": worker.sandbox.record.image_digest,
                "image_config": worker.sandbox.record.image_config,
            }
        )

    async def _prepare(
        self, worker: Worker, asked: SandboxSpec, draft: Draft, trace: Trace
    ) -> None:
        """before_create. What it changes and holds is durable before the create is accepted."""
        extensions, ledger = self.extensions, worker.sandbox.ledger
        try:
            await extensions.note_create(worker.sandbox.record, ledger)
            await extensions.ask(
                CallPoint.BEFORE_CREATE, worker.sandbox.record, ledger, trace, draft
            )
            state = worker.sandbox.record.extensions.model_copy(
                update={"accepted": True}
            )
            shaped = self._shaped(worker.sandbox.record, asked, state, draft)
            checks.check(shaped.spec, self.settings)
            await worker.sandbox.update(spec=shaped.spec, extensions=shaped.extensions)
        except BaseException:
            self.sandboxes.workers[worker.sandbox.record.id] = worker
            await finished(_give_back(worker))
            raise


async def _give_back(worker: Worker) -> None:
    """What cannot be given back now is tried again by the worker, also where that cannot be stored:
    the record says that it is not accepted.
    """
    await worker.wish(Wish.DELETE, regardless=True)
    with contextlib.suppress(TimedOut):
        await worker.sandbox.until(lambda _: False, _CLEAN_UP_WAIT_S)
