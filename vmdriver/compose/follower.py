"""What the base driver says of its sandboxes, and what that means to extensions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.base import Base
from vmdriver.compose.registry import Absent, Registry
from vmdriver.compose.relay import Relay
from vmdriver.compose.sandbox import Composed
from vmdriver.compose.store import Record, Stage
from vmdriver.lifecycle.extending.call_points import CallPoint

_log = logging.getLogger(__name__)
_CLEAN_AGAIN_S = 1.0
_LOOK_AGAIN_S = (0.2, 1.0, 5.0)
"""A driver may say that something is deleted a moment before it is."""
_TRANSIENT = {
    *("reconcilererror", "dependenciesnotready", "supervisornotconnected", "starting"),
    *("containerstarting", "containercreated", "healthcheckstarting", "inspectfailed"),
}
"""Reasons of Ready=False that are on the way up (contract §2.9); any other is an end."""
Change = Callable[[Composed], Awaitable[None]]


class Follower:
    """Follows the base from start to end of the process."""

    def __init__(self, base: Base, registry: Registry) -> None:
        self._registry = registry
        self.relay = Relay(base, self._on_event, self._on_list)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin; the base need not be there yet."""
        self._spawn(self.relay.run(), "relay")
        self._spawn(self._clean_again(), "cleaner")

    async def close(self) -> None:
        """Stop following; what is half done is taken up by the next process."""
        self.relay.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s failed", task.get_name(), exc_info=task.exception())

    async def _clean_again(self) -> None:
        while True:
            await asyncio.sleep(_CLEAN_AGAIN_S)
            try:
                await self._registry.clean_again()
                await self._settle_starts()
            except Exception:  # noqa: BLE001 - whatever it was, it is tried again
                _log.exception("what is overdue cannot be given back now")

    async def _settle_starts(self) -> None:
        for sandbox in self._registry.all():
            is_open = sandbox.start_open_until is not None or sandbox.look_again
            if is_open and not sandbox.lock.locked() and self.relay.connected.is_set():
                try:
                    await self._look(sandbox)
                except Exception:  # noqa: BLE001 - others do not wait for that one
                    _log.exception("%s: cannot be followed now", sandbox.record.id)

    # --- events

    def _on_event(self, event: pb.WatchSandboxesEvent) -> bytes | None:
        """Called for each; must not wait. What goes on, if it is not the same.

        An event may be late, doubled or out of order: it is a reason to look, no more.
        """
        kind = event.WhichOneof("payload")
        if kind == "deleted":
            sandbox = self._registry.get(event.deleted.sandbox_id)
            if sandbox is not None:
                self._spawn(self._look(sandbox, deleted=True), "look")
        elif kind == "sandbox":
            seen = event.sandbox.sandbox
            sandbox = self._registry.get(seen.id)
            if sandbox is not None and _matters(seen, sandbox.record):
                self._spawn(self._look(sandbox), "look")
            if self._registry.add_conditions(seen):
                return bytes(event.SerializeToString())
        return None

    async def _look(self, sandbox: Composed, *, deleted: bool = False) -> None:
        """What the base says now decides. Where it does not answer, its next list will; what cannot
        be noted of it, on a full disk, is looked at each second.
        """
        try:
            await self._look_until_seen(sandbox, deleted=deleted)
        except Exception:
            sandbox.look_again = True
            raise
        sandbox.look_again = False

    async def _look_until_seen(self, sandbox: Composed, *, deleted: bool) -> None:
        for wait_s in (0.0, *_LOOK_AGAIN_S):
            await asyncio.sleep(wait_s)
            async with sandbox.lock:
                if self._registry.get(sandbox.record.id) is not sandbox:
                    return
                if sandbox.record.stage is Stage.CREATING:
                    await self._registry.settle_abandoned(sandbox)
                    return
                present = await self._registry.look(sandbox.record.id)
                if present is Absent.GONE:
                    await self._registry.end(sandbox)
                    return
                if isinstance(present, pb.DriverSandbox):
                    await _follow(sandbox, present)
            if not deleted:
                return

    # --- lists

    async def _on_list(self, listed: Mapping[str, pb.DriverSandbox]) -> None:
        """The base has just come (back): what is here and not there is gone, what was half
        done is finished.
        """
        ours = self._registry.all()
        for sandbox in ours:
            if sandbox.lock.locked():
                continue  # somebody is at it, and will see for himself
            async with sandbox.lock:
                await self._reconcile(sandbox, listed.get(sandbox.record.id))
        others = self.relay.known() - set(listed) - {b.record.id for b in ours}
        for sandbox_id in others:
            if await self._registry.look(sandbox_id) is Absent.GONE:
                self._registry.tell_deleted(sandbox_id)

    async def _reconcile(
        self, sandbox: Composed, seen: pb.DriverSandbox | None
    ) -> None:
        registry, stage = self._registry, sandbox.record.stage
        if stage is Stage.GONE:
            await registry.end(sandbox)
        elif stage is Stage.CREATING:
            await registry.settle_abandoned(sandbox)
        elif seen is None:
            if await registry.look(sandbox.record.id) is Absent.GONE:
                await registry.end(sandbox)
                registry.tell_deleted(sandbox.record.id)
        elif stage is Stage.DELETING:
            await registry.delete_in_base(sandbox)
        else:
            await _follow(sandbox, seen)
            await sandbox.report(CallPoint.RECONCILE)


def _matters(seen: pb.DriverSandbox, record: Record) -> bool:
    return record.stage is Stage.CREATING or change_of(seen, record) is not None


def change_of(seen: pb.DriverSandbox, record: Record) -> Change | None:
    """What a snapshot means to extensions. One that says nothing clear changes nothing."""
    if not record.up:
        return None
    ready = _condition(seen, "Ready")
    if _is_suspended(seen):
        return Composed.run_ended
    if ready is not None and ready.status.lower() == "true":
        return None if record.ready_told else _ready
    ended = is_down(seen) and record.stage is not Stage.CREATING
    return Composed.run_ended if ended else None


def is_down(seen: pb.DriverSandbox) -> bool:
    """Whether the base says that it does not run, nor is on the way up."""
    if _is_suspended(seen):
        return True
    ready = _condition(seen, "Ready")
    if ready is None or ready.status.lower() != "false":
        return False
    return ready.reason.lower() not in _TRANSIENT


def _is_suspended(seen: pb.DriverSandbox) -> bool:
    found = _condition(seen, "Suspended")
    return found is not None and found.status.lower() == "true"


def _condition(seen: pb.DriverSandbox, kind: str) -> pb.DriverCondition | None:
    return next((c for c in seen.status.conditions if c.type == kind), None)


async def _follow(sandbox: Composed, seen: pb.DriverSandbox) -> None:
    """Do what it means. A start that was not answered is open until it is seen to run, or until it
    has had its time: which run is over by then says whatever the base says. One that was answered
    is open while its sandbox is still suspended.
    """
    change, open_still = change_of(seen, sandbox.record), sandbox.may_still_start
    if sandbox.start_answered and not _is_suspended(seen):
        open_still = False
    if change is not None and (change is _ready or not open_still):
        await change(sandbox)
    if change is _ready or not open_still:
        sandbox.start_open_until = None


async def _ready(sandbox: Composed) -> None:
    if sandbox.record.up and not sandbox.record.ready_told:
        await sandbox.update(ready_told=True)
        await sandbox.report(CallPoint.AFTER_READY)
