"""Machines that do not react: whoever asks them waits until they are given up or ended."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from vmdriver.errors import TimedOut
from vmdriver.host.threads import finished


class Hanging:
    """Which calls hang, by what they are: "pause DOMAIN", "thaw DOMAIN"."""

    def __init__(self) -> None:
        self.hangs: Callable[[str], bool] = lambda _call: False
        self.met: list[str] = []
        self._waiting: dict[str, list[asyncio.Future[None]]] = defaultdict(list)

    async def passed(self, call: str, domain: str, timeout_s: float = 0.0) -> None:
        """Goes through at once, or hangs. As in the real thing, cancelling does not help a call
        to the hypervisor; one to the guest (which has a timeout) ends by itself.
        """
        if not self.hangs(call):
            return
        self.met.append(call)
        future = asyncio.get_running_loop().create_future()
        self._waiting[domain].append(future)
        if not timeout_s:
            await finished(future)
            return
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError as error:
            raise TimedOut(f"{call}: no answer") from error

    def give_up(self, domain: str) -> None:
        """Also what follows when the machine is ended."""
        for future in self._waiting.pop(domain, []):
            if not future.done():
                future.set_exception(TimedOut("given up"))
