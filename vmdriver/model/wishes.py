"""What a wish makes of what was asked for before. Pure: whoever stores it decides on the record
of that very moment, so that two wishes at once are one after the other.

DELETED is final. A stop that comes while the sandbox is being suspended, resumed or returned to
a snapshot is kept. A suspension that was not to be turns into RUNNING only what was asked by an
operator and is asked still; the gateway's stop stays one.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from vmdriver.errors import Refused, Unavailable
from vmdriver.model.phase import Asked, Intent, Phase
from vmdriver.model.record import MAIN_PROCESS_EXITED, SandboxRecord

Changes = Mapping[str, Any]


class Wish(StrEnum):
    """What somebody wants now."""

    START = "start"
    STOP = "stop"
    STOP_SUSPENDED = "stop, with its memory kept if that can be"
    """The gateway's stop of a sandbox that says `on_stop = "suspend"`."""
    STOP_NOW = "stop now"
    """The gateway's stop has waited long enough for what comes before it."""
    SUSPEND = "suspend"
    """An operator's."""
    RETURN = "return to a snapshot"
    GO_ON = "go on"
    """The suspension was not to be; the machine is there."""
    DELETE = "delete"


RUNNING, STOPPED = Asked(Intent.RUNNING), Asked(Intent.STOPPED)
SUSPENDED, DELETED = Asked(Intent.SUSPENDED), Asked(Intent.DELETED)
STOPPED_SUSPENDED = Asked(Intent.SUSPENDED, stop_anyway=True)

_AFTER: Mapping[Asked, Mapping[Wish, Asked | None]] = {
    RUNNING: {
        Wish.START: RUNNING,
        Wish.STOP: STOPPED,
        Wish.STOP_SUSPENDED: STOPPED_SUSPENDED,
        Wish.STOP_NOW: RUNNING,
        Wish.SUSPEND: SUSPENDED,
        Wish.RETURN: RUNNING,
        Wish.GO_ON: RUNNING,
    },
    STOPPED: {
        Wish.START: RUNNING,
        Wish.STOP: STOPPED,
        Wish.STOP_SUSPENDED: STOPPED,
        Wish.STOP_NOW: STOPPED,
        Wish.SUSPEND: None,
        Wish.RETURN: RUNNING,
        Wish.GO_ON: STOPPED,
    },
    SUSPENDED: {
        Wish.START: RUNNING,
        # A suspension under way is the way down that keeps most.
        Wish.STOP: STOPPED_SUSPENDED,
        Wish.STOP_SUSPENDED: STOPPED_SUSPENDED,
        Wish.STOP_NOW: SUSPENDED,
        Wish.SUSPEND: SUSPENDED,
        Wish.RETURN: RUNNING,
        Wish.GO_ON: RUNNING,
    },
    STOPPED_SUSPENDED: {
        Wish.START: RUNNING,
        Wish.STOP: STOPPED_SUSPENDED,
        Wish.STOP_SUSPENDED: STOPPED_SUSPENDED,
        Wish.STOP_NOW: STOPPED,
        Wish.SUSPEND: STOPPED_SUSPENDED,
        Wish.RETURN: RUNNING,
        Wish.GO_ON: STOPPED_SUSPENDED,
    },
    DELETED: {
        Wish.START: None,
        Wish.STOP: None,
        Wish.STOP_SUSPENDED: None,
        Wish.STOP_NOW: DELETED,
        Wish.SUSPEND: None,
        Wish.RETURN: None,
        Wish.GO_ON: DELETED,
    },
}


def asked_of(record: SandboxRecord) -> Asked:
    """What is asked for; `stop_anyway` says something of a suspension only."""
    suspended = record.intent is Intent.SUSPENDED
    return Asked(record.intent, suspended and record.stop_anyway)


def asked_after(wish: Wish, asked: Asked) -> Asked | None:
    """What is asked for then; None: the wish is refused."""
    return DELETED if wish is Wish.DELETE else _AFTER[asked][wish]


def changes(wish: Wish, record: SandboxRecord) -> dict[str, Any]:
    """What to store; nothing where it is asked for already. Refused, Unavailable."""
    asked = asked_of(record)
    after = asked_after(wish, asked)
    if after is None and asked == DELETED:
        raise Refused(f"sandbox {record.id} is being deleted", reason="Deleting")
    if after is None:
        raise Refused(
            f"sandbox {record.id} is being stopped",
            reason="NotRunning",
            resolution="only a running sandbox can be suspended",
        )
    if wish is Wish.START and asked == RUNNING:
        return _started_again(record)
    if after == asked:
        return {}
    found: dict[str, Any] = {
        "intent": after.intent,
        "stop_anyway": after.stop_anyway,
    }
    if after == RUNNING:
        found["crash_restarts"] = 0
    return found


def _started_again(record: SandboxRecord) -> dict[str, Any]:
    """A start of what is meant to run: another try if it has failed."""
    failure = record.failure
    if record.phase not in {Phase.FAILING, Phase.FAILED}:
        return {}
    if failure is not None and failure.reason == MAIN_PROCESS_EXITED:
        raise Refused(
            f"sandbox {record.id}: {failure.message}",
            reason=MAIN_PROCESS_EXITED,
            resolution=(
                "its main process is not run twice; stop the sandbox "
                "first, or delete it"
            ),
        )
    if record.phase is Phase.FAILING:
        raise Unavailable(f"sandbox {record.id} is being cleaned up; try again")
    memory = record.memory
    kept = memory is not None and not memory.consumed
    return {
        "phase": Phase.SUSPENDED if kept else Phase.STOPPED,
        "failure": None,
        "crash_restarts": 0,
    }


def not_suspended(
    record: SandboxRecord, *, machine_is_there: bool, unwind_reason: str
) -> dict[str, Any]:
    """After a suspension that was not to be: the machine goes on where it is meant to; else what
    is left of it goes down, and is started again where that is wanted. A delete does its own.
    """
    if asked_of(record) == DELETED:
        return {}
    if machine_is_there and asked_after(Wish.GO_ON, asked_of(record)) == RUNNING:
        return {**changes(Wish.GO_ON, record), "phase": Phase.RUNNING}
    return {"phase": Phase.STOPPING, "unwind_reason": unwind_reason}


def returned(
    record: SandboxRecord, snapshot: str, when_asked: Asked, *, volumes: bool = False
) -> dict[str, Any]:
    """For an operator who asked for it at a time when `when_asked` held. A stop that came after
    that is not undone. Refused.
    """
    if asked_of(record) in {STOPPED, STOPPED_SUSPENDED} and when_asked != asked_of(
        record
    ):
        raise Refused(f"sandbox {record.id} was stopped meanwhile", reason="NotRunning")
    found = changes(Wish.RETURN, record)
    wanted = {"reverting": snapshot, "reverting_volumes": volumes}
    return {**found, **wanted, "crash_restarts": 0}
