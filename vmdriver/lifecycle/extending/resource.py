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
class ExtensionEntries:
    """Those whose keys begin so: acquired and given back by the extensions' runner."""

    key: str
    undo: Callable[[SandboxRecord, Ledger, Held, Reason], Awaitable[None]]
    data = OfExtension

    async def release(self, given: Given[OfExtension]) -> None:
        """CleanupError where the extension is not loaded."""
        assert given.record is not None  # noqa: S101 - extensions belong to sandboxes
        await self.undo(given.record, given.ledger, given.held, given.reason)
