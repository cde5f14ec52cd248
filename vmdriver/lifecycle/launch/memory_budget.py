"""How much memory the sandboxes that are meant to run take together, and whether more fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from vmdriver.errors import Exhausted
from vmdriver.lifecycle.launch.planner import size_of
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.phase import Intent
from vmdriver.model.record import SandboxRecord


class MemoryBudget:
    """Counts what a machine has where that is known, which may be more than was asked for:
    extensions have a word in it at each launch.
    """

    def __init__(
        self,
        records: Callable[[], Iterable[SandboxRecord]],
        settings: Settings,
        unowned_mib: Callable[[], int] = lambda: 0,
    ) -> None:
        self._records = records
        self._unowned_mib = unowned_mib
        """Of machines that are no sandbox's and could not be ended."""
        self._settings = settings
        self._claims: dict[str, int] = {}
        """By sandbox: MiB of a launch whose plan is not in the record yet."""
        self._coming: Counter[str] = Counter()
        """By sandbox: how many are just storing that it is to run."""

    def size_mib(self, record: SandboxRecord) -> int:
        """Of that sandbox's machine: as launched, as extensions shaped it at the create, or as
        asked for.
        """
        if record.id in self._claims:
            return self._claims[record.id]
        if record.plan is not None:
            return record.plan.memory_mib
        for change in record.extensions.changes:
            if change.field == "plan.memory_mib" and isinstance(change.value, int):
                return change.value
        return size_of(record.spec.resources, self._settings)[1]

    def committed_mib(self, but: str = "") -> int:
        """Of all sandboxes that are meant to run, without the one with that id, and of what could
        not be ended.
        """
        return self._unowned_mib() + sum(
            self.size_mib(record)
            for record in self._records()
            if record.id != but
            and (record.intent is Intent.RUNNING or self._coming[record.id])
        )

    def check(self, record: SandboxRecord) -> None:
        """Exhausted when this sandbox's memory does not fit beside the others'."""
        self._check(record.id, self.size_mib(record))

    def claim(self, record: SandboxRecord, memory_mib: int, by: str) -> None:
        """Count that much for it from now on. Exhausted when more than was counted for it so
        far, which the extension `by` asks for, does not fit.
        """
        known = {record.id for record in self._records()}
        self._claims = {i: mib for i, mib in self._claims.items() if i in known}
        if memory_mib > self.size_mib(record):
            self._check(record.id, memory_mib, f"extension {by!r}: " if by else "")
        self._claims[record.id] = memory_mib

    @contextmanager
    def room_for(self, record: SandboxRecord) -> Iterator[None]:
        """Inside, the sandbox counts as meant to run, until its record says so: two that come at
        once do not both have the room that is left for one. Exhausted when it does not fit.
        """
        self.check(record)
        self._coming[record.id] += 1
        try:
            yield
        finally:
            self._coming -= Counter({record.id: 1})  # zeros go

    def room_to_run(self, record: SandboxRecord) -> AbstractContextManager[None]:
        """`room_for` one that is not meant to run yet; one that is has its room."""
        runs = record.intent is Intent.RUNNING
        return nullcontext() if runs else self.room_for(record)

    def settle(self, sandbox_id: str) -> None:
        """The record has the plan: it counts from now on."""
        self._claims.pop(sandbox_id, None)

    def _check(self, sandbox_id: str, wanted: int, who: str = "") -> None:
        have, most = (
            self.committed_mib(but=sandbox_id),
            self._settings.max_committed_memory_mib,
        )
        if have + wanted > most:
            raise Exhausted(
                f"{who}max_committed_mem_mib: {have} MiB of {most} MiB are committed, "
                f"{wanted} MiB do not fit",
                reason="MemoryExhausted",
                resolution="stop or delete sandboxes, ask for less, or raise the limit",
            )
