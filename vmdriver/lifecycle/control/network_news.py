"""What is told of machines' networks reaches the sandboxes whose they are."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.ports.network_guard import NetworkGuard, NetworkNews

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkReporter:
    """Tells, and has looked; what is done is the sandbox's worker's."""

    sandboxes: Sandboxes
    guard: NetworkGuard

    def start(self) -> None:
        """Begin."""
        self.guard.on_news(self._told)

    def _told(self, news: NetworkNews) -> None:
        worker = self._worker(news.tap)
        if worker is None:
            _log.warning("network of %s: %s", news.tap, news.message)
            return
        if news.restored:
            worker.sandbox.tell("NetworkRestored", news.message, warn=True)
        worker.hint()

    def _worker(self, tap: str) -> Worker | None:
        """Whose machine has that tap; a template's, or one that waits, is nobody's."""
        for worker in self.sandboxes.workers.values():
            plan = worker.sandbox.record.plan
            if plan is not None and plan.network.lease.tap == tap:
                return worker
        return None
