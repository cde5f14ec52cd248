"""What a driver's machines use, looked at once for whoever asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vmdriver.host.threads import alone
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.model.usage import Usage
from vmdriver.telemetry.last_seen import LastSeen
from vmdriver.telemetry.machines import Whose

_EVERY_S = 1.0
_SHARE = 0.05
"""Of one processor, at most: adding up the memory of a machine takes milliseconds."""


@dataclass(frozen=True)
class Looked:
    """`at`: seconds of a clock that only runs."""

    at: float = 0.0
    of: Mapping[Whose, Usage] = field(default_factory=dict)


class MachineUse:
    """Of the accepted sandboxes' machines. `usage_of`: by domain, given each one's tap; blocks."""

    def __init__(
        self,
        sandboxes: Sandboxes,
        usage_of: Callable[[Mapping[str, str]], Mapping[str, Usage]],
        *,
        every_s: float = _EVERY_S,
    ) -> None:
        self._sandboxes, self._usage_of = sandboxes, usage_of
        self._last = LastSeen("machines", Looked(), every_s=every_s, share=_SHARE)

    async def look(self) -> Looked:
        """What they use now, or used when they were looked at last: never older than a second or
        twenty times what a look takes, unless one hangs.
        """
        return await self._last.look(self._look)

    async def _look(self) -> Looked:
        taps, whose = {}, {}
        for worker in self._sandboxes.accepted():
            record = worker.sandbox.record
            if record.plan is None or worker.sandbox.ledger.get(MACHINE) is None:
                continue
            domain = record.plan.domain
            taps[domain] = record.plan.network.lease.tap
            whose[domain] = Whose(record.id, record.spec.workspace)
        found = await alone("usage", self._usage_of, taps)
        used = {whose[domain]: use for domain, use in found.items()}
        return Looked(time.monotonic(), used)
