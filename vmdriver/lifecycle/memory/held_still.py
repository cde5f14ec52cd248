"""What a capture that has ended still holds still, since letting it go on has failed.

The guest's agent may be busy, or dead: root in the guest can end it. It is asked again, more and
more rarely, while the machine runs; meanwhile the sandbox is shown as what it may be, for nobody
else can say whether its workload runs.
"""

from __future__ import annotations

import time

from vmdriver.errors import DriverError
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.engine.ledger import Held
from vmdriver.lifecycle.engine.resource import FROZEN, PAUSED
from vmdriver.model.condition import Standstill
from vmdriver.model.record import utc_now

_FIRST_S = 2.0


class HeldStill:
    """Of one sandbox, in this process; the ledger says what is held."""

    def __init__(self) -> None:
        self._failed: dict[str, tuple[DriverError, Standstill]] = {}
        self._tries = 0
        self._again_at = 0.0

    def failed(self, held: Held, error: DriverError) -> None:
        """It could not be let go on."""
        self._failed[held.key] = error, _standstill(held, error)
        self._again_at = time.monotonic() + backoff_s(self._tries, first_s=_FIRST_S)
        self._tries += 1

    def ended(self, key: str) -> None:
        """It goes on, or there is no machine any more."""
        self._failed.pop(key, None)
        if not self._failed:
            self._tries, self._again_at = 0, 0.0

    def not_now(self, key: str) -> DriverError | None:
        """Why it is not tried to let this go on now. A paused guest does not hear that it is to
        thaw.
        """
        if key == FROZEN and PAUSED in self._failed:
            return self._failed[PAUSED][0]
        waits = key in self._failed and time.monotonic() < self._again_at
        return self._failed[key][0] if waits else None

    @property
    def why(self) -> Standstill | None:
        """What is shown meanwhile."""
        return next((still for _, still in self._failed.values()), None)


def _standstill(held: Held, error: DriverError) -> Standstill:
    if held.key == PAUSED:
        text = "it could not be let go on after its memory was to be kept"
    elif held.done:
        text = "its workload is frozen, and the agent in the guest does not thaw it"
    else:
        text = (
            "its workload may be frozen, which nobody knows: the agent in the guest answered "
            "neither when it was to freeze nor when it was to thaw it"
        )
    return Standstill(
        "HeldStill", f"{text}; it is tried again ({error.text()})", utc_now()
    )
