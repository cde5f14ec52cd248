"""Moments in a sandbox's life at which extensions are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum


class CallPoint(StrEnum):
    """A moment in a sandbox's life at which extensions are called."""

    VALIDATE_REQUEST = "validate_request"
    PREPARE_PLAN = "prepare_plan"
    BEFORE_CREATE = "before_create"
    AFTER_CREATE = "after_create"
    ON_CREATE_FAILED = "on_create_failed"
    BEFORE_START = "before_start"
    AFTER_READY = "after_ready"
    BEFORE_STOP = "before_stop"
    AFTER_STOP = "after_stop"
    BEFORE_DELETE = "before_delete"
    AFTER_DELETE = "after_delete"
    RECONCILE = "reconcile"


def in_order(points: Iterable[CallPoint]) -> tuple[str, ...]:
    """As they come in a sandbox's life."""
    wanted = set(points)
    return tuple(point.value for point in CallPoint if point in wanted)


ENDING = frozenset(
    {CallPoint.ON_CREATE_FAILED, CallPoint.AFTER_STOP, CallPoint.AFTER_DELETE}
)
"""Phases that run in reverse order. What they say has happened: their errors change nothing."""
HOLDING = frozenset({CallPoint.BEFORE_CREATE, CallPoint.BEFORE_START})
"""Phases in which something may be held."""
SET_UP = HOLDING | {CallPoint.VALIDATE_REQUEST, CallPoint.PREPARE_PLAN}
"""Phases that must not be gone through without everybody who takes part. A stop and a delete
may be: whoever is not loaded any more cannot keep a sandbox for ever.
"""
HOOKS_OF: Mapping[CallPoint, tuple[str, ...]] = {
    CallPoint.PREPARE_PLAN: ("configure_launch",),
    CallPoint.BEFORE_START: ("before_restore", "before_launch"),
    CallPoint.AFTER_READY: ("after_restore",),
    CallPoint.AFTER_STOP: ("after_launch_failed",),
    CallPoint.AFTER_DELETE: ("after_delete",),
    CallPoint.RECONCILE: ("before_restore", "after_restore"),
}
"""Where a phase and hooks of the VM driver are called at the same point. The others have no
hook: they are about requests, which upstream's hooks do not see.
"""
