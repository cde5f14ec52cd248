"""The sandboxes that a composed driver accompanies, and how each of them ends."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from enum import Enum

import grpc

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.base import Asked, Base, BaseRejected
from vmdriver.compose.sandbox import Composed
from vmdriver.compose.store import Record, Stage, Store
from vmdriver.errors import DriverError, Unavailable
from vmdriver.lifecycle.engine import measures
from vmdriver.lifecycle.extending.runner import Runner

_log = logging.getLogger(__name__)
EVENT_SOURCE = "compose"
_UNSURE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
"""Codes that also say that an answer was lost."""
_VAGUE = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DATA_LOSS,
}
"""Codes of a base that failed: before what it was asked for, or after it."""
Publish = Callable[[pb.WatchSandboxesEvent, bytes], None]


class Absent(Enum):
    """Why there is no sandbox to look at."""

    GONE = "the base does not have it"
    UNKNOWN = "the base does not say"


class Registry:
    """By id. Sandboxes that no extension takes part in are the base's alone and not here.
    `publish`: where our own events go.
    """

    def __init__(
        self,
        base: Base,
        store: Store,
        runner: Runner[Record],
        create_grace_s: float,
        publish: Publish,
    ) -> None:
        self._base = base
        self._create_grace_s = create_grace_s
        self._store = store
        self._runner = runner
        self._sandboxes: dict[str, Composed] = {}
        self._publish = publish

    def open(self) -> None:
        """Read what is on disk."""
        for record in self._store.open():
            sandbox = self.add(record)
            going_up = record.up and not record.ready_told
            if going_up and record.stage is Stage.PRESENT:
                self.start_open(sandbox)  # by the process before, for all we know
                sandbox.cut_off = True

    def add(self, record: Record) -> Composed:
        """A new one; it is on disk when it is first updated."""
        sandbox = Composed(
            record, self._store.ledger(record.id), self._store, self._runner, self.tell
        )
        self._sandboxes[record.id] = sandbox
        return sandbox

    def get(self, sandbox_id: str) -> Composed | None:
        """By id."""
        return self._sandboxes.get(sandbox_id)

    def find(self, sandbox_id: str, name: str) -> Composed | None:
        """By id, else by a name that only one has."""
        if sandbox_id:
            return self.get(sandbox_id)
        found = [b for b in self._sandboxes.values() if name and b.record.name == name]
        return found[0] if len(found) == 1 else None

    def all(self) -> list[Composed]:
        """As they are now."""
        return list(self._sandboxes.values())

    def known(self) -> list[Record]:
        """For extensions: every sandbox that the base has, or is to have, oldest first."""
        return [b.record for b in self.all() if b.record.stage is not Stage.GONE]

    def troubled(self) -> bool:
        """Whether anything could not be undone."""
        return any(sandbox.trouble for sandbox in self._sandboxes.values())

    # --- ends

    async def end(self, sandbox: Composed) -> None:
        """The base does not have it any more."""
        await sandbox.gone()
        self._drop(sandbox)

    async def uncreate(self, sandbox: Composed) -> None:
        """The base never had it."""
        await sandbox.create_failed()
        self._drop(sandbox)

    async def create_failed(self, sandbox: Composed, error: BaseException) -> None:
        """After a create that was refused or cut off. Where the base may have it after all,
        it is deleted there: whoever asked has been told that there is none.
        """
        if sandbox.record.stage is Stage.PRESENT:
            return  # only the answer was lost
        may_be_there = is_unsure(error)
        if is_vague(error):
            may_be_there = await self.look(sandbox.record.id) is not Absent.GONE
        if sandbox.base_asked and may_be_there:
            sandbox.abandoned_at = time.monotonic()
            await self.settle_abandoned(sandbox)
        else:
            await self.uncreate(sandbox)

    async def settle_abandoned(self, sandbox: Composed) -> None:
        """A create that the base never answered: what appears there is deleted, and after a
        while nothing appears any more. Called again until it is settled: what extensions hold for
        it is given back when it is gone, and not when the base says that it is going.
        """
        present = await self.look(sandbox.record.id)
        if isinstance(present, pb.DriverSandbox):
            sandbox.abandoned_at = -math.inf  # it appears once
            if not await self.delete_in_base(sandbox):
                return
            present = await self.look(sandbox.record.id)
        late = time.monotonic() - sandbox.abandoned_at > self._create_grace_s
        if present is Absent.GONE and late:
            await self.uncreate(sandbox)

    def start_open(self, sandbox: Composed, *, answered: bool = False) -> None:
        """A start may have been done, or be done yet. What the base says decides, but for a while
        not that it is down; where it has `answered` that it starts, not that it is suspended.
        """
        sandbox.start_open_until = time.monotonic() + self._create_grace_s
        sandbox.start_answered = answered

    async def clean_again(self) -> None:
        """Try again what could not be settled or undone. Called every second."""
        for sandbox in self.all():
            if sandbox.lock.locked():
                continue
            try:
                async with sandbox.lock:
                    await self._clean_one(sandbox)
            except Exception:  # noqa: BLE001 - others do not wait for that one
                _log.exception("%s: cannot be cleaned up now", sandbox.record.id)

    async def _clean_one(self, sandbox: Composed) -> None:
        if sandbox.record.stage is Stage.CREATING:
            await self.settle_abandoned(sandbox)
        elif sandbox.overdue():
            await sandbox.clean_again()
            self._drop(sandbox)

    def _drop(self, sandbox: Composed) -> None:
        if sandbox.forgotten:
            self._sandboxes.pop(sandbox.record.id, None)

    async def delete_in_base(self, sandbox: Composed) -> bool:
        """False: not yet."""
        record = sandbox.record
        request = pb.DeleteSandboxRequest(
            sandbox_id=record.id, sandbox_name=record.name
        ).SerializeToString()
        try:
            await self._base.call("DeleteSandbox", request, Asked(timeout_s=30.0))
        except (BaseRejected, DriverError) as error:
            _log.warning("%s: cannot be deleted in the base yet: %s", record.id, error)
            return False
        return True

    async def look(self, sandbox_id: str) -> pb.DriverSandbox | Absent:
        """What the base says of it now. A list may be incomplete while a driver starts: only
        this answer counts.
        """
        request = pb.GetSandboxRequest(sandbox_id=sandbox_id).SerializeToString()
        try:
            raw = await self._base.call("GetSandbox", request, Asked(timeout_s=10.0))
        except BaseRejected as error:
            gone = error.code is grpc.StatusCode.NOT_FOUND
            return Absent.GONE if gone else Absent.UNKNOWN
        except DriverError:
            return Absent.UNKNOWN
        answer = pb.GetSandboxResponse.FromString(raw)
        return answer.sandbox if answer.HasField("sandbox") else Absent.GONE

    # --- what we say ourselves

    def add_conditions(self, seen: pb.DriverSandbox) -> bool:
        """Behind the base's own: the gateway derives its phase from Ready and Suspended.
        False: there is nothing to add.
        """
        sandbox = self.get(seen.id)
        if sandbox is None or not sandbox.trouble:
            return False
        seen.status.conditions.append(
            pb.DriverCondition(
                type="ExtensionsClean",
                status="False",
                reason="ExtensionCleanupFailed",
                message=sandbox.trouble,
            )
        )
        return True

    def tell_deleted(self, sandbox_id: str) -> None:
        """In the base's place, which went away before it could say so."""
        event = pb.WatchSandboxesEvent()
        event.deleted.sandbox_id = sandbox_id
        self._publish(event, event.SerializeToString())

    def tell(self, sandbox_id: str, reason: str, message: str) -> None:
        """A platform event of our own, and a line in the log."""
        _log.warning("%s: %s: %s", sandbox_id, reason, message)
        measures.event(reason, "Warning")
        event = pb.WatchSandboxesEvent()
        event.platform_event.sandbox_id = sandbox_id
        inner = event.platform_event.event
        inner.timestamp_ms = time.time_ns() // 1_000_000
        inner.source, inner.type = EVENT_SOURCE, "Warning"
        inner.reason, inner.message = reason, message
        self._publish(event, event.SerializeToString())


def is_vague(error: BaseException) -> bool:
    """Whether only a look can tell."""
    return isinstance(error, BaseRejected) and error.code in _VAGUE


def is_unsure(error: BaseException) -> bool:
    """Whether the base may have done what it was asked for all the same."""
    if isinstance(error, BaseRejected):
        return error.code in _UNSURE
    return isinstance(error, Unavailable) or not isinstance(error, DriverError)
