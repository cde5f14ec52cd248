"""What an extension holds, as one more thing in a sandbox's ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from vmdriver.lifecycle.engine.ledger import Held, Ledger
from vmdriver.lifecycle.engine.resource import Data, Given
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason


class OfExtension(Data):
    """Whose it is."""

    extension: str


@dataclass(frozen=True)
class Extensions:
    """Of any extension: acquired and given back by their runner."""

    undo: Callable[[SandboxRecord, Ledger, Held, Reason], Awaitable[None]]
    data = OfExtension

    async def release(self, given: Given[OfExtension]) -> None:
        """CleanupError where the extension is not loaded."""
        holder = given.holder
        assert holder.record is not None  # noqa: S101 - nobody's machine has none
        await self.undo(holder.record, holder.ledger, given.held, holder.reason)
