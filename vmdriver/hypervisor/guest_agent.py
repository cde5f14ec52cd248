"""Implements lifecycle.ports.guest.Guest over the domains' virtio-serial channels."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from secrets import token_hex

from vmdriver.errors import HypervisorError
from vmdriver.hypervisor import domain_reading, guest_channel
from vmdriver.hypervisor.connection import Connection

_log = logging.getLogger(__name__)
_FREEZE_SLACK_S = 5.0
"""For the answer: the agent gives up freezing by itself after the limit, and then says so."""
_OF_A_SYNC = 0.8
"""For so much of the time the agent waits for its disks; the rest is for its answer."""
_SEED_BYTES = 64
_FIGURES = ("clock_entropy_ms", "files_ms", "connections_ms", "thaw_ms", "connections")
"""Of a renewal, as agent.c says them: the log has nothing else that a guest says."""
_is_figure = re.compile(r"[0-9]{1,9}(\.[0-9])?").fullmatch


def _new_seed() -> dict[str, str]:
    return {"seed": token_hex(_SEED_BYTES)}


def _clock() -> dict[str, str]:
    return {"clock_ns": str(time.time_ns())}


class GuestAgent:
    """The agents of the domains on one connection. What each verb does is in
    images/guest/agent.c.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ping(self, domain: str, limit_s: float) -> dict[str, str]:
        """Whether the agent answers at all, and what it says that it can do."""
        return await self._ask(domain, "ping", dict, limit_s)

    async def request(
        self,
        domain: str,
        verb: str,
        fields: Mapping[str, str],
        limit_s: float,
        longest: int,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        """Another verb, with an answer of up to `longest` bytes, as it was said. `begin`: before
        it is asked, the channel being open.
        """
        path = await self._path(domain)
        return await self._connection.lanes.attend(
            domain,
            f"ask {domain} to {verb}",
            guest_channel.ask_text(
                path, verb, lambda: fields, limit_s, begin, longest=longest
            ),
        )

    async def flush(self, domain: str, limit_s: float) -> None:
        await self._ask(domain, "flush", dict, limit_s)

    async def sync(self, domain: str, limit_s: float) -> None:
        fields = {"timeout_ms": str(int(_OF_A_SYNC * limit_s * 1000))}
        await self._ask(domain, "sync", lambda: fields, limit_s)

    async def freeze(self, domain: str, limit_s: float) -> str:
        fields = {"timeout_ms": str(int(limit_s * 1000))}
        wait_s = limit_s + _FREEZE_SLACK_S
        answer = await self._ask(domain, "freeze", lambda: fields, wait_s)
        return answer.get("boot_id", "")

    async def thaw(self, domain: str, limit_s: float) -> None:
        await self._ask(domain, "thaw", _clock, limit_s)

    async def renew(
        self,
        domain: str,
        limit_s: float,
        *,
        files: bool,
        begin: Callable[[], Awaitable[None]],
    ) -> None:
        fresh = {"files": "1"} if files else {}
        answer = await self._ask(
            domain,
            "renew",
            lambda: {**_new_seed(), **fresh, **_clock()},
            limit_s,
            begin,
        )
        figures = {k: v for k, v in answer.items() if k in _FIGURES and _is_figure(v)}
        _log.info("%s: hygiene in the guest: %s", domain, figures)

    async def adopt(self, domain: str, limit_s: float) -> None:
        await self._ask(domain, "adopt", lambda: {**_clock(), **_new_seed()}, limit_s)

    async def _ask(
        self,
        domain: str,
        verb: str,
        fields: guest_channel.Fields,
        limit_s: float,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> dict[str, str]:
        path = await self._path(domain)
        begun = time.monotonic()

        async def run() -> None:
            nonlocal begun
            if begin is not None:
                await begin()
            begun = time.monotonic()

        answer = await self._connection.lanes.attend(
            domain,
            f"ask {domain} to {verb}",
            guest_channel.ask(path, verb, fields, limit_s, run),
        )
        _log.debug("outside: guest %s took %.4f s", verb, time.monotonic() - begun)
        return answer

    async def _path(self, domain: str) -> str:
        path = await self._connection.call(
            f"channel of {domain}",
            lambda c: domain_reading.read_channel(c.lookupByName(domain).XMLDesc()),
            domain,
        )
        if not path:
            raise HypervisorError(f"domain {domain} has no channel to its guest")
        return path
