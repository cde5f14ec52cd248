"""How long a restore that fails is tried again. Only a difference, damage or a refusal ends it at
once: what may pass costs nobody their memory.
"""

from __future__ import annotations

from enum import Enum, auto

from vmdriver.errors import (
    DriverError,
    LoadRefused,
    NotRestorable,
)

_LOADS = 3


class Verdict(Enum):
    """What follows a try that failed."""

    AGAIN = auto()
    KEEP = auto()
    """The sandbox fails, its memory stays for the next start."""
    GIVE_UP = auto()
    """It cannot be restored, now or later."""


class RestoreTries:
    """Of one restore, in this process. `limit_s`: how long what may pass is waited for."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self.begin()

    def begin(self) -> None:
        """Another restore."""
        self._since: float | None = None
        self._refused_loads = 0

    def not_loaded(self, error: DriverError) -> DriverError:
        """QEMU's word on a checkpoint in which we see no fault: it counts from the third time on.
        That it is late, was killed or could not be started is not its word.
        """
        if not isinstance(error, LoadRefused):
            return error
        self._refused_loads += 1
        return error if self._refused_loads < _LOADS else final(error)

    def verdict(self, error: DriverError, *, used: bool, now_s: float) -> Verdict:
        """`used`: the machine has gone on from it; then it is this machine or none. `now_s`:
        a clock that only goes forward.
        """
        if isinstance(error, NotRestorable):
            return Verdict.GIVE_UP
        if self._since is None:
            self._since = now_s
        if now_s - self._since < self._limit_s:
            return Verdict.AGAIN
        return Verdict.GIVE_UP if used else Verdict.KEEP


def final(error: DriverError) -> NotRestorable:
    """The same, said to be for good."""
    return NotRestorable(
        error.message,
        detail=error.detail,
        reason=error.reason,
        resolution=error.resolution,
    )
