"""Implements lifecycle.ports.programs.GuestPrograms by the agents' verbs begin, io and end
(images/guest/commands.h).
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from vmdriver.errors import GuestRefused, HypervisorError, Refused, TimedOut
from vmdriver.hypervisor.guest_agent import GuestAgent
from vmdriver.hypervisor.guest_channel import LONGEST_ANSWER
from vmdriver.lifecycle.ports.programs import (
    MOST_GIVEN,
    MOST_SAID,
    Program,
    Said,
    Turn,
    Window,
)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,31}")
_SAID = re.compile(
    r"taken=([0-9]{1,5}) out=([A-Za-z0-9+/=]{0,8192}) err=([A-Za-z0-9+/=]{0,8192})"
    r"(?: code=([0-9]{1,3}))?"
)


class AgentPrograms:
    """By the agents of one connection. One command of a machine's asks at a time, so that no more
    than one stands before what else is asked of its agent: QEMU serves its channel in order.
    """

    def __init__(self, agent: GuestAgent) -> None:
        self._agent = agent
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def _turn(self, domain: str, limit_s: float) -> AsyncIterator[None]:
        """TimedOut where it does not come by then."""
        turn = self._turns.setdefault(domain, asyncio.Lock())
        try:
            async with asyncio.timeout(limit_s):
                await turn.acquire()
        except TimeoutError as error:
            raise TimedOut("other commands ask the guest all the time") from error
        try:
            yield
        finally:
            turn.release()

    async def _ask(
        self,
        domain: str,
        verb: str,
        fields: dict[str, str],
        limit_s: float,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        async with self._turn(domain, limit_s):
            return await self._agent.request(
                domain, verb, fields, limit_s, LONGEST_ANSWER, begin
            )

    async def begin(
        self,
        domain: str,
        name: str,
        program: Program,
        limit_s: float,
        may: Callable[[], None],
    ) -> None:
        async with self._turn(domain, limit_s):
            known = await self._agent.ping(domain, limit_s)
        if known.get("commands") != "1":
            raise Refused(
                "the guest was started from boot files that know no operators' commands",
                reason="CommandsUnknown",
                resolution="make boot files anew, then stop the sandbox and start it",
            )
        if known.get("operator") != "1":
            raise Refused(
                "the machine was started without operators' commands",
                reason="CommandsOff",
                resolution="set operator_exec = true, then stop the sandbox and start it",
            )
        words = b"".join(
            word.encode(errors="surrogateescape") + b"\0" for word in program.words
        )
        fields = {"id": name, "argv": base64.b64encode(words).decode()}
        fields |= {"root": "1"} if program.as_root else {}
        fields |= _window(program.window)
        fields |= {"term": program.term} if _NAME.fullmatch(program.term) else {}

        async def begin() -> None:
            may()  # QEMU serves one connection after the other: who comes later is later

        await self._ask(domain, "begin", fields, limit_s, begin)

    async def exchange(
        self, domain: str, name: str, turn: Turn, limit_s: float
    ) -> Said:
        room = min(turn.room, MOST_SAID)
        given = turn.given[:MOST_GIVEN]
        fields = {"id": name, "seq": str(turn.number), "room": str(room)}
        fields |= {"in": base64.b64encode(given).decode()} if given else {}
        fields |= {"eof": "1"} if turn.last else {}
        fields |= _window(turn.window)
        answer = await self._ask(domain, "io", fields, limit_s)
        return read_answer(answer, len(given), room)

    async def end(self, domain: str, name: str, limit_s: float) -> None:
        try:
            await self._ask(domain, "end", {"id": name}, limit_s)
        except GuestRefused:
            return  # it has been ended, or forgotten


def _window(window: Window | None) -> dict[str, str]:
    if window is None:
        return {}
    return {"rows": str(window.rows), "columns": str(window.columns)}


def read_answer(text: str, given: int, room: int) -> Said:
    """What a guest says of an exchange. HypervisorError for what is no answer to it, or more than
    was asked for: a guest may say anything.
    """
    found = _SAID.fullmatch(text)
    if found is not None:
        try:
            out, err = (
                base64.b64decode(part, validate=True) for part in found.group(2, 3)
            )
        except ValueError:
            found = None
    if found is None:
        raise HypervisorError("the guest's answer about a command is none")
    taken, code = int(found[1]), int(found[4]) if found[4] else None
    if taken > given or max(len(out), len(err)) > room or (code or 0) > 255:
        raise HypervisorError("the guest's answer about a command cannot be")
    return Said(taken, out, err, code)
