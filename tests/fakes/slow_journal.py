"""A ledger that takes its time to note that something is given back, or cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tests.fakes.journal import FakeJournal
from tests.fakes.world import World
from vmdriver.errors import StorageError


class SlowJournal(FakeJournal):
    """Says when it is to note that `key` is given back, and does it when it is let. `full`: it does not grow, and
    nothing replaces it.
    """

    full = False

    def __init__(self, world: World, sandbox_id: str, key: str) -> None:
        super().__init__(world, sandbox_id)
        self._key = key
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def append(self, *lines: Mapping[str, Any]) -> None:
        struck = {line["key"] for line in lines if line["op"] == "released"}
        await self._may_write(strikes=self._key in struck)
        await super().append(*lines)

    async def rewrite(self, lines: list[Mapping[str, Any]]) -> None:
        await self._may_write(strikes=self._key not in {line["key"] for line in lines})
        await super().rewrite(lines)

    async def _may_write(self, *, strikes: bool) -> None:
        if self.full:
            self.reached.set()
            raise StorageError("no space left", reason="DiskFull")
        if strikes:
            self.reached.set()
            await self.go.wait()
