"""Before a host is shut down, which ends its machines as if their power were cut: what guests have
written is on their disks. They go on meanwhile, and the next driver starts them again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from vmdriver.host.side_by_side import side_by_side
from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.engine.ledger import Scope
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.ports.guest import Guest
from vmdriver.model.phase import Phase

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LastFlush:
    """Of all machines that run, side by side."""

    sandboxes: Sandboxes
    guest: Guest

    async def run(self, limit_s: float) -> None:
        """Each guest has so long. Which of them did not do it is logged; never raises but when
        cancelled.
        """
        asked = {
            worker.sandbox.record.id: self.guest.flush(plan.domain, limit_s)
            for worker in self.sandboxes.workers.values()
            if (plan := worker.sandbox.record.plan) is not None and _runs(worker)
        }
        done, _ = await side_by_side(asked)
        _log.info(
            "this host is shut down: %d guests have flushed their disks", len(done)
        )
        if silent := sorted(asked.keys() - done):
            _log.warning("these have not: %s", ", ".join(silent))


def _runs(worker: Worker) -> bool:
    """One that is held for a capture was flushed for that, and does not answer."""
    sandbox = worker.sandbox
    return sandbox.record.phase is Phase.RUNNING and not sandbox.ledger.held(
        Scope.CAPTURE
    )
