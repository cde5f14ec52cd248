"""What operators ask of one sandbox's loop, one after the other: everybody gets an answer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from vmdriver.errors import DriverError, unexpected
from vmdriver.model.phase import MachineState

_log = logging.getLogger(__name__)
Job = Callable[[MachineState], Awaitable[None]]


class Jobs:
    """The queue of one sandbox. `cut_off` says why a job that was begun is not ended."""

    def __init__(self, owner: str, cut_off: Callable[[], DriverError]) -> None:
        self._owner, self._cut_off = owner, cut_off
        self._waiting: deque[tuple[Job, asyncio.Future[None]]] = deque()

    def put(self, job: Job) -> asyncio.Future[None]:
        """Its answer: done, or what it raised."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        return future

    async def do_next(self, machine: MachineState) -> bool:
        """Do the one that waits longest. False: there is none. Raises only what ends the loop."""
        if not self._waiting:
            return False
        job, future = self._waiting.popleft()
        try:
            await job(machine)
        except DriverError as error:
            _answer(future, error)
        except Exception as error:  # noqa: BLE001 - whoever asked gets an answer, and the loop goes on
            _log.exception("%s: a job failed", self._owner)
            _answer(future, unexpected(error))
        except BaseException:
            _answer(future, self._cut_off())
            raise
        else:
            _answer(future, None)
        return True

    def dismiss(self, why: DriverError) -> None:
        """Answer everybody whose job has not begun."""
        while self._waiting:
            _answer(self._waiting.popleft()[1], why)


def _answer(future: asyncio.Future[None], error: DriverError | None) -> None:
    if future.done():
        return  # whoever asked has gone
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
        future.exception()  # nobody may look at it any more
