"""Who gives back what a sandbox needs, and is no sandbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


class Ways:
    """Of one kind of thing that there are only so many of."""

    def __init__(self) -> None:
        self._ways: list[Callable[[], Awaitable[bool]]] = []

    def tell(self, short: Callable[[], Awaitable[bool]]) -> None:
        """From now on call `short` when a sandbox finds none: True if one was given back."""
        self._ways.append(short)

    async def make_way(self) -> bool:
        """Have machines of no sandbox give one back. False: none of them has any."""
        # A machine that waits is made sooner than its template.
        for short in reversed(self._ways):
            if await short():
                return True
        return False
