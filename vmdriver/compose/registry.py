"""The sandboxes that a composed driver accompanies, and how each of them ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.base import Answered, Asked, Base
from vmdriver.compose.sandbox import Composed
from vmdriver.compose.store import Record, Stage, Store
from vmdriver.errors import DriverError, Unavailable
from vmdriver.lifecycle.hooks import SandboxView
from vmdriver.lifecycle.phases.activation import Activation
from vmdriver.lifecycle.phases.runner import PhaseRunner

_log = logging.getLogger(__name__)
EVENT_SOURCE = "compose"
Publish = Callable[[pb.WatchSandboxesEvent, bytes], None]


class Registry:
    """By id. Sandboxes that no extension takes part in are the base's alone and not here."""

    def __init__(self, base: Base, store: Store, runner: PhaseRunner) -> None:
        self._base = base
        self._store = store
        self._runner = runner
        self._boxes: dict[str, Composed] = {}
        runner.known = self._known
        self.publish: Publish = lambda _event, _raw: None
        """Where our own events go."""

    def open(self) -> None:
        """Read what is on disk."""
        for record in self._store.open():
            self.add(record)

    def add(self, record: Record) -> Composed:
        """A new one; it is on disk when it is first updated."""
        box = Composed(
            record, self._store.ledger(record.id), self._store, self._runner, self.tell
        )
        self._boxes[record.id] = box
        return box

    def get(self, sandbox_id: str) -> Composed | None:
        """By id."""
        return self._boxes.get(sandbox_id)

    def find(self, sandbox_id: str, name: str) -> Composed | None:
        """By id, else by a name that only one has."""
        if sandbox_id:
            return self.get(sandbox_id)
        found = [b for b in self._boxes.values() if name and b.record.name == name]
        return found[0] if len(found) == 1 else None

    def all(self) -> list[Composed]:
        """As they are now."""
        return list(self._boxes.values())

    def _known(self) -> list[tuple[SandboxView, Activation]]:
        boxes = [b for b in self.all() if b.record.stage is not Stage.GONE]
        return [(b.record.sandbox, b.record.activation) for b in boxes]

    def troubled(self) -> bool:
        """Whether anything could not be undone."""
        return any(box.trouble for box in self._boxes.values())

    # --- ends

    async def end(self, box: Composed) -> None:
        """The base does not have it any more."""
        await box.gone()
        self._drop(box)

    async def uncreate(self, box: Composed) -> None:
        """The base never had it."""
        await box.create_failed()
        self._drop(box)

    async def create_failed(self, box: Composed, error: BaseException) -> None:
        """After a create that was refused or cut off. Where the base may have it after all,
        it is deleted there: whoever asked has been told that there is none.
        """
        if box.record.stage is Stage.PRESENT:
            return  # only the answer was lost
        unsure = not isinstance(error, Answered | DriverError) or isinstance(
            error, Unavailable
        )
        if unsure and not await self.delete_in_base(box):
            return  # the follower goes on with it when the base is back
        await self.uncreate(box)

    async def clean_again(self) -> None:
        """Try again what could not be undone. Called from time to time."""
        for box in self.all():
            if box.overdue() and not box.lock.locked():
                async with box.lock:
                    await box.clean_again()
                    self._drop(box)

    def _drop(self, box: Composed) -> None:
        if box.forgotten:
            self._boxes.pop(box.record.id, None)

    async def delete_in_base(self, box: Composed) -> bool:
        """False: not yet."""
        record = box.record
        request = pb.DeleteSandboxRequest(
            sandbox_id=record.id, sandbox_name=record.name
        ).SerializeToString()
        try:
            await self._base.call("DeleteSandbox", request, Asked(timeout_s=30.0))
        except (Answered, DriverError) as error:
            _log.warning("%s: cannot be deleted in the base yet: %s", record.id, error)
            return False
        return True

    async def is_gone(self, sandbox_id: str) -> bool:
        """Whether the base says so. A list may be incomplete while a driver starts: only
        this answer counts.
        """
        request = pb.GetSandboxRequest(sandbox_id=sandbox_id).SerializeToString()
        try:
            await self._base.call("GetSandbox", request, Asked(timeout_s=10.0))
        except Answered as error:
            return error.code is grpc.StatusCode.NOT_FOUND
        except DriverError:
            return False
        return False

    # --- what we say ourselves

    def add_conditions(self, sandbox: pb.DriverSandbox) -> bool:
        """Behind the base's own: the gateway derives its phase from Ready and Suspended.
        False: there is nothing to add.
        """
        box = self.get(sandbox.id)
        if box is None or not box.trouble:
            return False
        sandbox.status.conditions.append(
            pb.DriverCondition(
                type="ExtensionsClean",
                status="False",
                reason="ExtensionCleanupFailed",
                message=box.trouble,
            )
        )
        return True

    def tell_deleted(self, sandbox_id: str) -> None:
        """In the base's place, which went away before it could say so."""
        event = pb.WatchSandboxesEvent()
        event.deleted.sandbox_id = sandbox_id
        self.publish(event, event.SerializeToString())

    def tell(self, sandbox_id: str, reason: str, message: str) -> None:
        """A platform event of our own, and a line in the log."""
        _log.warning("%s: %s: %s", sandbox_id, reason, message)
        event = pb.WatchSandboxesEvent()
        event.platform_event.sandbox_id = sandbox_id
        inner = event.platform_event.event
        inner.timestamp_ms = time.time_ns() // 1_000_000
        inner.source, inner.type = EVENT_SOURCE, "Warning"
        inner.reason, inner.message = reason, message
        self.publish(event, event.SerializeToString())
