"""Guests ask the host's own resolver for names: at the address that they know the host as, which
leads to two sockets of this process in the machine's own network namespace.

Nobody but the machine is in there, so what is asked at them is its. While no driver runs nobody
answers, and nobody else can: the port is one that only root may have.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from weakref import WeakValueDictionary

from vmdriver.errors import NetworkError
from vmdriver.host.confined import netns
from vmdriver.host.resolv_conf import Followed
from vmdriver.host.retry import backoff_s
from vmdriver.host.threads import alone, finished
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.names.asking import Asking
from vmdriver.network.names.desk import Desk, Load, Sockets

_log = logging.getLogger(__name__)
_FIRST_S, _MOST_S = 0.2, 10.0


class NameService:
    """Of one driver's machines."""

    def __init__(self, asking: Asking | None = None) -> None:
        """`asking`: whom; the host's own servers without it."""
        hosts = Followed()
        self._asking = asking or Asking(lambda: hosts.now().servers)
        self.load = Load()
        self._desks: dict[str, tuple[int, Desk]] = {}
        """By tap, with the number of the namespace that it is in."""
        self._trying: dict[str, asyncio.Task[None]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By tap: what one opens, another does not close meanwhile."""

    async def serve(self, plan: NetworkPlan) -> None:
        """Answer that machine until `leave`, if its plan has it ask here. Where that cannot be had
        now it is tried again, and everything else goes on.
        """
        tap, within = plan.lease.tap, plan.namespace
        if within is None or not plan.asks_host:
            await self.leave(tap)
            return
        await self._stop_trying(tap)
        try:
            await self._open(tap, within, plan.lease.host_ip)
        except NetworkError as error:
            _log.warning("%s", error.text())
            again = self._try_again(tap, within, plan.lease.host_ip)
            self._trying[tap] = asyncio.create_task(again, name=f"names of {tap}")

    async def leave(self, tap: str) -> None:
        """Answer it no more; nothing of it goes on after this."""
        await self._stop_trying(tap)
        async with self._turn(tap):
            _, desk = self._desks.pop(tap, (0, None))
            if desk is not None:
                await finished(desk.close())

    def _turn(self, tap: str) -> asyncio.Lock:
        """It lives for as long as somebody has it or waits for it."""
        return self._turns.setdefault(tap, asyncio.Lock())

    async def close(self) -> None:
        """Answer nobody any more."""
        for tap in {*self._desks, *self._trying}:
            await self.leave(tap)

    async def _stop_trying(self, tap: str) -> None:
        task = self._trying.pop(tap, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _try_again(self, tap: str, within: str, address: str) -> None:
        tries = 0
        while True:
            await asyncio.sleep(backoff_s(tries, first_s=_FIRST_S, most_s=_MOST_S))
            tries += 1
            with suppress(NetworkError):
                await self._open(tap, within, address)
                return

    async def _open(self, tap: str, within: str, address: str) -> None:
        """Unless it is open in that very namespace. NetworkError."""
        try:
            async with self._turn(tap):
                number = netns.path(within).stat().st_ino
                known, desk = self._desks.pop(tap, (0, None))
                if desk is not None and known == number:
                    self._desks[tap] = number, desk
                    return
                if desk is not None:
                    await finished(desk.close())
                self._desks[tap] = number, await self._opened(within, address)
        except OSError as error:
            raise NetworkError(
                f"names for {tap}: nothing can be opened in its network namespace: "
                f"{error.strerror or error}"
            ) from error

    async def _opened(self, within: str, address: str) -> Desk:
        """All of it or nothing, also where it is cancelled."""
        desk, made = Desk(self._asking, self.load), list[Sockets]()
        try:
            await alone("names", _open_in, within, address, made)
            await finished(desk.open(made[0]))
        except BaseException:
            await finished(desk.close())
            for sockets in made:
                sockets.close()
            raise
        return desk


def _open_in(within: str, address: str, made: list[Sockets]) -> None:
    with netns.entered(within):
        made.append(Sockets.opened(address))
