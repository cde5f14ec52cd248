"""Programs in guests: `echo` says back what it is given, `exit N` ends at once, `wait` never does,
`flood` says as much as it may. A guest may be silent, deaf or lie, as a test says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.fakes.world import World
from vmdriver.errors import GuestRefused, NotFound, Refused, TimedOut
from vmdriver.lifecycle.ports.programs import Program, Said, Turn
from vmdriver.model.phase import DomainState

_TAKEN = 3
"""Bytes of input that are taken at once: whoever gives more gives the rest again."""


@dataclass
class Running:
    """One of them, as its guest knows it."""

    domain: str
    program: Program
    number: int = 0
    answer: Said | None = None
    given: bytearray = field(default_factory=bytearray)
    over: bool = False
    turns: list[Turn] = field(default_factory=list)


async def nothing() -> None:
    """Nobody comes in between."""


class FakePrograms:
    """Implements lifecycle.ports.programs.GuestPrograms."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.running: dict[str, Running] = {}
        self.begun: list[Program] = []
        self.ended: list[str] = []
        self.allowed = True
        self.taken = _TAKEN
        self.before_begin: Callable[[], Awaitable[None]] = nothing
        """What happens between a caller's last look and the agent's being asked."""
        self.silent: Callable[[Turn], bool] = lambda _turn: False
        """Which exchanges are done and not answered."""

    async def begin(
        self,
        domain: str,
        name: str,
        program: Program,
        limit_s: float,
        may: Callable[[], None],
    ) -> None:
        if not self.allowed:
            raise Refused("the machine was started without", reason="CommandsOff")
        await self.before_begin()
        may()
        self._asked(domain, "begin")
        assert domain not in self._world.frozen, "begun beside a frozen workload"
        self.running[name] = Running(domain, program)
        self.begun.append(program)

    async def exchange(
        self, domain: str, name: str, turn: Turn, limit_s: float
    ) -> Said:
        self._asked(domain, "exchange")
        running = self.running.get(name)
        if running is None:
            raise GuestRefused("the guest refused to io: there is no such command")
        running.turns.append(turn)
        if turn.number != running.number or running.answer is None:
            if turn.number != running.number + 1:
                raise GuestRefused("the guest refused to io: that is no exchange")
            running.number, running.answer = turn.number, self._done(running, turn)
        if self.silent(turn):
            await asyncio.sleep(0.01)
            raise TimedOut("the guest did not answer 'io'")
        return running.answer

    async def end(self, domain: str, name: str, limit_s: float) -> None:
        self._asked(domain, "end")
        self.running.pop(name, None)
        self.ended.append(name)

    def _asked(self, domain: str, verb: str) -> None:
        self._world.act(f"{verb} {domain}")
        state = self._world.domains.get(domain)
        if state is None:
            raise NotFound(f"no domain {domain}")
        if state is DomainState.STALLED:
            raise TimedOut("the guest did not answer")
        assert state is DomainState.RUNNING, f"{verb} of a paused guest"

    def _done(self, running: Running, turn: Turn) -> Said:
        kind, *words = running.program.words
        kind = "echo" if running.program.window else kind
        taken = turn.given[: self.taken]
        running.given += taken
        running.over = turn.last and len(taken) == len(turn.given)
        match kind:
            case "exit":
                return Said(len(taken), b"", b"", int(words[0]))
            case "flood":
                return Said(len(taken), b"f" * turn.room, b"", None)
            case "echo":
                out = bytes(running.given[: turn.room])
                del running.given[: len(out)]
                ends = running.over and not running.given and turn.room
                return Said(len(taken), out, b"", 0 if ends else None)
        return Said(len(taken), b"", b"", None)
