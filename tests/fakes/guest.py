"""Agents in guests that freeze, thaw and flush as the world says their machines do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.fakes.world import World
from vmdriver.errors import NotFound, TimedOut
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import DomainState

_FREEZE_SLACK_S = 5.0
_THERE = {DomainState.RUNNING, DomainState.PAUSED, DomainState.STALLED}


class FakeGuest:
    """What a guest's agent does at each verb."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def flush(self, domain: str, limit_s: float) -> None:
        await self.heard("flush", domain, limit_s)
        self._world.flushed.append(domain)

    async def sync(self, domain: str, limit_s: float) -> None:
        await self.heard("sync", domain, limit_s)
        assert domain not in self._world.frozen, "it is too late for that"

    async def freeze(self, domain: str, limit_s: float) -> str:
        await self.heard("freeze", domain, limit_s + _FREEZE_SLACK_S)
        self._world.frozen.add(domain)
        return "guest-boot"

    async def thaw(self, domain: str, limit_s: float) -> None:
        await self.heard("thaw", domain, limit_s)
        self._world.frozen.discard(domain)

    async def renew(
        self,
        domain: str,
        limit_s: float,
        *,
        files: bool,
        begin: Callable[[], Awaitable[None]],
    ) -> None:
        await begin()
        await self.heard("renew", domain, limit_s)
        self._world.frozen.discard(domain)

    async def adopt(self, domain: str, limit_s: float) -> None:
        await self.heard("adopt", domain, limit_s)
        for path in self._world.reports:
            if path.startswith(self._world.marks[domain].rpartition("/")[2]):
                self._world.reports[path] = GuestReport("started")

    async def heard(self, verb: str, domain: str, limit_s: float) -> None:
        """The agent is asked, and answers within its limit. A test may put itself in between."""
        world = self._world
        world.act(f"{verb} {domain}")
        await world.hanging.passed(f"{verb} {domain}", domain, limit_s)
        world.monitor(domain)
        if world.domains.get(domain) not in _THERE:
            raise NotFound(f"no domain {domain}")
        if world.domains[domain] is DomainState.STALLED:
            await asyncio.sleep(min(limit_s, 0.2))
            raise TimedOut(f"the guest did not answer {verb!r}")
        assert world.domains[domain] is DomainState.RUNNING, f"{verb} of a paused guest"
