"""What operators ask for beyond the gateway's contract. Each returns when it is done, and
raises why it is not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from vmdriver.errors import HostError, NotFound, Refused
from vmdriver.lifecycle.control.manager import Manager
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.memory.capture import refuse_unkept
from vmdriver.lifecycle.memory.snapshot import find_snapshot
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.checkpoint import SnapshotEntry
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord
from vmdriver.model.snapshot_name import split_snapshot
from vmdriver.model.wishes import Wish, asked_of

_RESTORE_SLACK_S = 60.0


class Operations:
    """On the sandboxes of one manager."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        settings = manager.settings
        self._up_limit_s = (
            settings.boot_timeout_s
            + settings.restore_timeout_s
            + settings.restore_retry_s
            + _RESTORE_SLACK_S
        )

    def find(self, sandbox: str) -> Worker:
        """By id, or by a name that is unique on this host. NotFound, Refused,
        InvalidRequest.
        """
        sandboxes = self._manager.sandboxes
        if sandbox in {*sandboxes.workers, *sandboxes.set_aside}:
            return sandboxes.find(sandbox, "")
        worker = sandboxes.find("", sandbox)
        if worker.sandbox.record.intent is Intent.DELETED:
            raise Refused(f"sandbox {sandbox} is being deleted", reason="Deleting")
        return worker

    async def suspend(self, worker: Worker) -> None:
        """Put it away with its memory. Refused when it does not run, or must not."""
        record = worker.sandbox.record
        if record.phase is Phase.SUSPENDED:
            return
        if record.phase is not Phase.RUNNING or record.intent is not Intent.RUNNING:
            raise Refused(
                f"sandbox {record.id} is {record.phase.value}",
                reason="NotRunning",
                resolution="only a running sandbox can be suspended",
            )
        if record.plan is not None:
            refuse_unkept(record.plan)
        await self._manager.ask_to_stop(worker)
        await worker.wish(Wish.SUSPEND)
        limit_s = self._manager.stop_limit_s()
        await worker.sandbox.until(
            lambda r: (
                r.phase in {Phase.SUSPENDED, Phase.STOPPED}
                or r.intent is Intent.RUNNING
            ),
            limit_s,
        )
        self._must_exist(worker)
        if worker.sandbox.record.phase is not Phase.SUSPENDED:
            raise worker.sandbox.refusal or Refused(
                f"sandbox {record.id} was not suspended: it is "
                f"{worker.sandbox.record.phase.value}"
            )

    async def resume(self, worker: Worker, *, cold: bool = False) -> None:
        """Bring it back, from its memory if it has some and `cold` does not say otherwise."""
        was_down = _is_down(worker)
        if cold:
            await worker.sandbox.decide(_cold)
            worker.start()
            await worker.sandbox.until(lambda record: not record.cold, self._up_limit_s)
            self._must_exist(worker)
        await self._manager.start(worker.sandbox.record.id, "")
        await self._up(worker, was_down=was_down)

    async def _up(self, worker: Worker, *, was_down: bool) -> None:
        """Wait until it runs. If it was down before, a gateway must be told by its user: a
        driver cannot lead a row out of Stopped (contract §2.9).
        """
        await worker.sandbox.until(
            lambda r: (
                r.intent is not Intent.RUNNING
                or (not r.reverting and r.phase in {Phase.RUNNING, Phase.FAILED})
            ),
            self._up_limit_s,
        )
        self._must_exist(worker)
        if worker.sandbox.record.intent is not Intent.RUNNING:
            raise Refused(f"sandbox {worker.sandbox.record.id} was stopped meanwhile")
        failure = worker.sandbox.record.failure
        if worker.sandbox.record.phase is Phase.FAILED and failure is not None:
            raise HostError(failure.message, reason=failure.reason)
        if was_down:
            worker.sandbox.tell(
                "GatewaySaysStopped",
                "the sandbox runs; a gateway goes on saying Stopped until `openshell sandbox "
                f"start {worker.sandbox.record.spec.name}`",
            )

    async def create_snapshot(
        self, worker: Worker, name: str, *, disk_only: bool, volumes: bool = False
    ) -> None:
        """Take a snapshot; the sandbox goes on."""

        take = self._manager.snapshot_jobs.take
        what = {"disk_only": disk_only, "volumes": volumes}
        await worker.perform(lambda m: take(worker.sandbox, m, name, **what))

    def volume_of_snapshot(self, text: str, name: str) -> AsyncIterator[Piece]:
        """What is on that volume of the snapshot SANDBOX/NAME. InvalidRequest, NotFound."""
        sandbox, snapshot = split_snapshot(text, "snapshot")
        entry = find_snapshot(self.find(sandbox).sandbox.record, snapshot)
        return self._manager.snapshot_jobs.volumes.content(entry, name)

    async def restore_snapshot(
        self, worker: Worker, name: str, *, volumes: bool = False
    ) -> None:
        """Make it what it was then, `volumes`: with its volumes. NotFound for another name."""
        find_snapshot(worker.sandbox.record, name)
        was_down = _is_down(worker)
        asked = asked_of(worker.sandbox.record)
        return_to = self._manager.snapshot_jobs.return_to
        await worker.perform(
            lambda _: return_to(worker.sandbox, name, asked, volumes=volumes)
        )
        await self._up(worker, was_down=was_down)

    async def delete_snapshot(self, worker: Worker, name: str) -> None:
        """Remove a snapshot. NotFound."""
        find_snapshot(worker.sandbox.record, name)
        jobs = self._manager.snapshot_jobs
        await worker.perform(lambda _: jobs.remove(worker.sandbox, name))

    def snapshots(self, worker: Worker) -> tuple[SnapshotEntry, ...]:
        """Oldest first."""
        return worker.sandbox.record.snapshots

    @staticmethod
    def _must_exist(worker: Worker) -> None:
        if worker.sandbox.gone:
            raise NotFound(f"sandbox {worker.sandbox.record.id} was deleted meanwhile")


def _cold(record: SandboxRecord) -> dict[str, bool]:
    if record.intent is Intent.DELETED:
        raise Refused(f"sandbox {record.id} is being deleted", reason="Deleting")
    return {"cold": True}


def _is_down(worker: Worker) -> bool:
    """Whether watchers have been shown it as stopped."""
    return any(c.type == "Suspended" for c in worker.sandbox.status.conditions)
