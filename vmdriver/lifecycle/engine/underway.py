"""What the loop of one sandbox is doing, and how it is cut off for something more urgent.

Everything the loop does may be cut off anywhere by a crash and be begun again from record and
ledger; to cut it off is the same without the crash. What it waits for may hang: then it is given
up a moment later, and ended with the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from vmdriver.errors import HostError
from vmdriver.model.phase import Action, Asked, cuts_off

_PATIENCE_S = 1.5
"""For a call that is only slow to come back by itself."""


class Underway:
    """`give_up` has whoever waits for the sandbox's machine told that it is given up."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._give_up = give_up
        self.task: asyncio.Task[bool] | None = None
        self.doing = Action.REST
        self.cut = False
        """The last turn was cut off, or is being."""
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, turn: Coroutine[None, None, bool]) -> bool:
        """The turn's result; False when it was cut off. HostError for one that was cancelled by
        nobody: the loop must not end for it.
        """
        self.cut, self.doing = False, Action.REST
        self.task = task = asyncio.create_task(turn)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            ended = me is not None and me.cancelling() > 0
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            if ended:
                raise
            if not self.cut:
                raise HostError("internal error: cancelled by nobody") from None
            return False
        finally:
            self.task = None
            if self._timer is not None:
                self._timer.cancel()

    def make_way(self, asked: Asked) -> None:
        """Cut it off if what is asked for now does not wait for it."""
        if self.task is None or self.cut or not cuts_off(asked, self.doing):
            return
        self.cut = True
        self.task.cancel()
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._insist)

    def _insist(self) -> None:
        """Also what it begins to wait for while it makes way."""
        self._give_up()
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._insist)
