"""What the core asks of the gateway."""

from __future__ import annotations

from typing import Protocol


class Gateway(Protocol):
    """The one whose sandboxes these are."""

    async def version(self) -> str:
        """Its release as it says it, such as 0.0.111. Unavailable where it does not answer, or says
        none.
        """
