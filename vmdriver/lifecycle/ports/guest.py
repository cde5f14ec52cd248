"""What the core asks of the agent in a guest. What ports/host.py says of errors and cancellation
holds here too.

The guest is not trusted: each call ends within its limit (seconds), with TimedOut where the agent
does not answer, HypervisorError with the guest's own (cleaned) words where it says no, and NotFound
where there is no such machine. A call that was cut off may still be carried out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class Guest(Protocol):
    """The agents, each by its domain's name. Nothing of it may be asked of a paused machine."""

    async def flush(self, domain: str, limit_s: float) -> None:
        """Write what the guest's file systems hold back to its disks."""

    async def sync(self, domain: str, limit_s: float) -> None:
        """The same while everything runs on, so that `freeze` finds little to write. Where that
        takes longer it goes on, beside whatever is asked next. Agents of earlier releases refuse
        it.
        """

    async def freeze(self, domain: str, limit_s: float) -> str:
        """Freeze the workload, then flush, so that memory and disk are of one moment. `limit_s` is
        for the freezing; the answer is waited for a little longer. Returns the boot id of the
        guest's kernel, "" where it does not say.
        """

    async def thaw(self, domain: str, limit_s: float) -> None:
        """Set the wall clock and let a frozen workload run. Fine with what runs."""

    async def renew(
        self,
        domain: str,
        limit_s: float,
        *,
        files: bool,
        begin: Callable[[], Awaitable[None]],
    ) -> None:
        """Make new, in a machine that comes back from its memory, what must not be as it was (its
        random numbers, its clock; with `files` its secrets), then thaw. `begin` has the machine
        run: it is called when all is ready for the question.
        """

    async def adopt(self, domain: str, limit_s: float) -> None:
        """Have a machine that waits at a template's barrier become the sandbox whose files it
        was given, with random numbers and a clock of its own.
        """
