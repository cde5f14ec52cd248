"""Whether a checkpoint's memory is as it was written, found out while a machine is made of it.

QEMU maps the file that is digested: it lies in a folder of ours and is ours, for nobody to write,
from before its first digest until after QEMU has opened it. That it was the same file all the time,
and not written to, is looked at when both are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from vmdriver.errors import DriverError, NotFound, TimedOut, Unavailable
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine.stopwatch import Timed
from vmdriver.lifecycle.ports.memory import MemoryStore, damaged
from vmdriver.model.checkpoint import MEMORY, FileIdentity, Part


class MemoryCheck:
    """Of one checkpoint, under way."""

    def __init__(
        self, store: MemoryStore, directory: str, parts: tuple[Part, ...]
    ) -> None:
        self._store, self._directory = store, directory
        self._parts = tuple(part for part in parts if part.name == MEMORY)

    @asynccontextmanager
    async def under_way(self, timed: Timed) -> AsyncIterator[None]:
        """It goes on beside what is inside, and is given up with that. `timed` is entered for
        it. NotRestorable: the memory is gone. StorageError.
        """
        self._before = await self._identity()
        self._work = asyncio.create_task(self._find(timed))
        try:
            yield
        finally:
            self._work.cancel()
            await finished(asyncio.wait({self._work}))
            if not self._work.cancelled():
                self._work.exception()  # whoever wanted to know was told

    async def beside(self, work: Awaitable[None]) -> None:
        """Have something done that waits for this. Cancelled, both are: what is compared at once,
        so that who waits for that does not, however slow the disk is.
        """
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            self._work.cancel()
            task.cancel()
            await finished(asyncio.wait({task}))
            if not task.cancelled():
                task.exception()  # whoever cancelled it wants nothing else
            raise

    async def passed(self) -> None:
        """Wait until all of it was compared; the machine has its memory open. NotRestorable for
        what is damaged, StorageError for what cannot be read, Unavailable when it was given up.
        """
        await asyncio.wait({self._work})
        if self._work.cancelled():
            raise Unavailable("memory is not compared to its end: it was given up")
        problems = self._work.result()
        if problems:
            raise damaged("; ".join(problems))
        if await self._identity() != self._before:
            raise damaged("memory was written to while it was loaded")

    async def explain(self, error: DriverError) -> None:
        """A machine was not made of it: NotRestorable if that is no wonder. Who gave up
        waiting does not wait for this either.
        """
        if self._work.done() or not isinstance(error, TimedOut):
            await self.passed()

    async def _find(self, timed: Timed) -> list[str]:
        with timed("digests"):
            return await self._store.damage(self._directory, self._parts)

    async def _identity(self) -> tuple[FileIdentity, ...]:
        try:
            return await self._store.identify((f"{self._directory}/{MEMORY}",))
        except NotFound as error:
            raise damaged("memory is gone") from error
