"""Rules of several machines, loaded in one transaction where they are wanted at one time: nft reads
every table of the host each time it is begun, so that hundreds of programs would take minutes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from vmdriver.errors import NetworkError
from vmdriver.host.threads import finished

_MOST = 256


@dataclass(eq=False)
class _Wanted:
    text: str
    done: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class JointLoader:
    """`load` loads a text, all of it or nothing, and does nothing any more once it is cancelled."""

    def __init__(self, load: Callable[[str], Awaitable[None]]) -> None:
        self._load = load
        self._wanted: list[_Wanted] = []
        self._under_way: list[_Wanted] = []
        self._program: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def load(self, text: str) -> None:
        """Have it loaded. NetworkError. When cancelled, it is loaded by then or never."""
        wanted = _Wanted(text)
        self._wanted.append(wanted)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="load rules")
        try:
            await asyncio.shield(wanted.done)
        except asyncio.CancelledError:
            await finished(self._drop(wanted))
            raise

    async def _drop(self, wanted: _Wanted) -> None:
        wanted.done.cancel()
        if wanted in self._wanted:
            self._wanted.remove(wanted)
        elif wanted in self._under_way and self._program is not None:
            # What others want of it is begun again without this.
            self._program.cancel()
            await asyncio.wait({self._program})

    async def _run(self) -> None:
        while self._wanted:
            some, self._wanted = self._wanted[:_MOST], self._wanted[_MOST:]
            if not await self._loaded(some) and len(some) > 1:
                # One of them is at fault, or was dropped: each by itself.
                for one in some:
                    await self._loaded([one])

    async def _loaded(self, some: list[_Wanted]) -> bool:
        """False: nothing of it was, and of several nobody was told so."""
        some = [one for one in some if not one.done.done()]
        if not some:
            return True
        text = "".join(one.text for one in some)
        self._under_way = some
        self._program = asyncio.create_task(self._begun(text))
        await asyncio.wait({self._program})
        if self._program.cancelled():
            return False
        error = self._program.exception()
        if error is not None and len(some) > 1:
            return False
        for one in some:
            if not one.done.done() and error is None:
                one.done.set_result(None)
            elif not one.done.done() and error is not None:
                one.done.set_exception(error)
        return error is None

    async def _begun(self, text: str) -> None:
        try:
            await self._load(text)
        except NetworkError:
            raise
        except Exception as error:
            raise NetworkError(f"rules could not be loaded: {error!r}") from error
