"""Operators' commands in guests: who may have which, and how one goes to its end.

The guest may say anything, much or nothing: an exchange is short and bounded, no output is asked
for that nobody takes, and whatever ends this has the command in the guest end. Nothing is asked
of a machine that stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Protocol

from vmdriver.errors import (
    DriverError,
    Exhausted,
    GuestRefused,
    HypervisorError,
    InvalidRequest,
    NotFound,
    Refused,
    TimedOut,
)
from vmdriver.host.visible import visible
from vmdriver.lifecycle.engine.resource import FROZEN, PAUSED
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.engine.worker import Worker
from vmdriver.lifecycle.ports.programs import (
    MOST_WORDS,
    GuestPrograms,
    Program,
    Said,
    Turn,
    Window,
)
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import COMMAND_FOLLOWS

_log = logging.getLogger(__name__)
_MOST = 16
"""At a time, of all sandboxes."""
_EXCHANGE_S = 2.0
"""A guest that does not answer holds up what else is asked of it for no longer."""
_SILENCE_S = 20.0
"""Then it is given up."""
_BEGIN_S, _END_S = 10.0, 2.0
_STILL_S = 20.0
"""None is begun or ended in a machine that stands still: so long it is waited for."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.1
_SHOWN = 500
"""Characters of a command in events and the log."""


@dataclass(frozen=True)
class Asked:
    """One command. `sandbox`: id or name; `timeout_s`: 0 for none; `alone`: nobody else has one
    of this kind there.
    """

    sandbox: str
    program: Program
    timeout_s: float = 0.0
    alone: bool = False


class Ends(Protocol):
    """Whoever asks, in this process. Nothing of it waits."""

    @property
    def woken(self) -> asyncio.Event:
        """Set when there is something new."""

    def given(self) -> tuple[bytes, bool]:
        """Input that is not taken yet, and whether that is all."""

    def took(self, count: int) -> None:
        """So much of it is."""

    def room(self) -> int:
        """Bytes of output that can be taken now."""

    def said(self, out: bytes, err: bytes) -> None:
        """Take output."""

    def window(self) -> Window | None:
        """The terminal's new size, once."""

    def begun(self) -> None:
        """It runs."""


class Commands:
    """Of one driver. `find`: a sandbox by id or name; NotFound, Refused, InvalidRequest."""

    def __init__(
        self, *, find: Callable[[str], Worker], programs: GuestPrograms
    ) -> None:
        self._find = find
        self._programs = programs
        self._running = 0
        self._alone: set[str] = set()
        self._endings: set[asyncio.Task[None]] = set()

    async def run(self, asked: Asked, ends: Ends, who: str) -> int:
        """Run one to its end: its exit code. Told, as an event and in the log, with who asked. When
        this is cancelled or raises, it is ended in the guest. Refused, Exhausted, TimedOut,
        HypervisorError.
        """
        user = "root" if asked.program.as_root else "sandbox"
        words = visible(shlex.join(asked.program.words))
        shown = f"{COMMAND_FOLLOWS} {words[:_SHOWN]}"
        with contextlib.ExitStack() as place:
            with _refusals_told(f"{who} may run no command as {user}", shown):
                sandbox = self._find(asked.sandbox).sandbox
            with _refusals_told(f"{who} may run no command as {user}", shown, sandbox):
                _check(asked.program)
                domain = _domain(sandbox)
                place.enter_context(self._place(sandbox, alone=asked.alone))
            sandbox.tell("OperatorCommand", f"{who} runs a command as {user}{shown}")
            begun = time.monotonic()
            outcome = "was cut off"
            try:
                code = await self._run(sandbox, domain, asked, ends)
                outcome = f"ended with exit code {code}"
            except DriverError as error:
                outcome = f"was ended: {error.message}"
                raise
            finally:
                took = f"after {time.monotonic() - begun:.1f} s"
                text = f"the command of {who} {outcome}, {took}"
                sandbox.tell("OperatorCommandEnded", text)
        return code

    @contextlib.contextmanager
    def _place(self, sandbox: Sandbox, *, alone: bool) -> Iterator[None]:
        name = sandbox.record.id
        if alone and name in self._alone:
            raise Refused(
                f"another console of sandbox {name} is open",
                reason="ConsoleBusy",
                resolution="end that one first",
            )
        if self._running >= _MOST:
            raise Exhausted(f"{_MOST} operators' commands run already")
        self._running += 1
        self._alone |= {name} if alone else set()
        try:
            yield
        finally:
            self._running -= 1
            self._alone -= {name} if alone else set()

    async def _run(
        self, sandbox: Sandbox, domain: str, asked: Asked, ends: Ends
    ) -> int:
        name = token_hex(8)
        limit_s = asked.timeout_s or None
        try:
            async with asyncio.timeout(limit_s) as limit:
                await self._begin(sandbox, domain, name, asked.program)
                ends.begun()
                return await self._converse(sandbox, domain, name, ends)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimedOut(
                f"the command took longer than {asked.timeout_s:g} s"
            ) from error
        finally:
            await self._end(sandbox, domain, name)

    async def _begin(
        self, sandbox: Sandbox, domain: str, name: str, program: Program
    ) -> None:
        """Have it begun while nothing holds the machine or its workload still."""

        def moves() -> None:
            _check_there(sandbox, domain)
            if _held(sandbox, FROZEN, PAUSED):
                raise _StandsStillError

        while True:
            await _moves(sandbox, domain, FROZEN, PAUSED)
            with contextlib.suppress(_StandsStillError):
                await self._programs.begin(domain, name, program, _BEGIN_S, moves)
                return

    async def _end(self, sandbox: Sandbox, domain: str, name: str) -> None:
        """It goes on if this is cancelled, and where the machine stands still; a guest that is
        not reached ends it by itself.
        """
        ending = asyncio.ensure_future(self._ended(sandbox, domain, name))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        await asyncio.wait({ending}, timeout=_END_S)

    async def _ended(self, sandbox: Sandbox, domain: str, name: str) -> None:
        with contextlib.suppress(DriverError):
            if _stands_still(sandbox):
                await _moves(sandbox, domain, PAUSED)
            await self._programs.end(domain, name, _END_S)

    async def _converse(
        self, sandbox: Sandbox, domain: str, name: str, ends: Ends
    ) -> int:
        number, pause_s, over = 1, _FIRST_PAUSE_S, False
        while True:
            _check_there(sandbox, domain)
            given, last = ends.given()
            turn = Turn(
                number,
                given,
                last=last and not over,
                room=ends.room(),
                window=ends.window(),
            )
            said = await self._exchange(sandbox, domain, name, turn)
            number += 1
            over = over or (turn.last and said.taken == len(turn.given))
            ends.took(said.taken)
            ends.said(said.out, said.err)
            if said.code is not None:
                return said.code
            busy = said.taken or said.out or said.err
            pause_s = _FIRST_PAUSE_S if busy else min(2 * pause_s, _LONGEST_PAUSE_S)
            if await _waited(ends.woken, pause_s):
                pause_s = _FIRST_PAUSE_S

    async def _exchange(
        self, sandbox: Sandbox, domain: str, name: str, turn: Turn
    ) -> Said:
        """The same one until it is answered: the guest does it once."""
        silent_since = time.monotonic()
        while True:
            _check_there(sandbox, domain)
            if _stands_still(sandbox):
                silent_since = time.monotonic()
                await asyncio.sleep(_LONGEST_PAUSE_S)
                continue
            try:
                return await self._programs.exchange(domain, name, turn, _EXCHANGE_S)
            except GuestRefused:
                raise
            except (TimedOut, HypervisorError, NotFound) as error:
                _log.debug("%s: %s", sandbox.record.id, error)
                if time.monotonic() - silent_since > _SILENCE_S:
                    raise TimedOut("the guest does not answer any more") from error
            await asyncio.sleep(_LONGEST_PAUSE_S)


@contextlib.contextmanager
def _refusals_told(
    text: str, shown: str, sandbox: Sandbox | None = None
) -> Iterator[None]:
    """Nobody tries unnoticed."""
    try:
        yield
    except DriverError as error:
        told = f"{text} ({error.message}){shown}"
        if sandbox is None:
            _log.warning("OperatorCommandRefused: %s", told)
        else:
            sandbox.tell("OperatorCommandRefused", told, warn=True)
        raise


def _check(program: Program) -> None:
    try:  # a word of another's locale is the bytes that it was (PEP 383)
        size = sum(
            len(word.encode(errors="surrogateescape")) + 1 for word in program.words
        )
    except UnicodeEncodeError as error:
        raise InvalidRequest("command", "is no text") from error
    if not program.words or not program.words[0]:
        raise InvalidRequest("command", "is empty")
    if any("\0" in word for word in program.words):
        raise InvalidRequest("command", "holds a NUL")
    if size > MOST_WORDS or len(program.words) > 256:
        text = f"is longer than {MOST_WORDS} bytes or 256 words; give the rest as input"
        raise InvalidRequest("command", text)


def _domain(sandbox: Sandbox) -> str:
    """Of its machine, which runs and was begun so. Refused."""
    record = sandbox.record
    _check_runs(sandbox)
    if record.plan is None or not record.plan.operator_exec:
        raise Refused(
            f"the machine of sandbox {record.id} was started without operators' commands",
            reason="CommandsOff",
            resolution="set operator_exec = true, then stop the sandbox and start it",
        )
    return record.plan.domain


def _check_runs(sandbox: Sandbox) -> None:
    record = sandbox.record
    runs = record.phase is Phase.RUNNING and record.intent is Intent.RUNNING
    if not runs or sandbox.gone:
        raise Refused(
            f"sandbox {record.id} does not run: it is {record.phase.value}",
            reason="NotRunning",
            resolution="start it",
        )


def _check_there(sandbox: Sandbox, domain: str) -> None:
    """Still the same machine, and nobody ends it."""
    _check_runs(sandbox)
    plan = sandbox.record.plan
    if plan is None or plan.domain != domain:
        raise Refused(
            f"sandbox {sandbox.record.id} has another machine", reason="NotRunning"
        )


class _StandsStillError(Exception):
    """It did not, when that was asked before."""


def _held(sandbox: Sandbox, *holds: str) -> bool:
    return sandbox.still is not None or any(sandbox.ledger.get(key) for key in holds)


def _stands_still(sandbox: Sandbox) -> bool:
    return _held(sandbox, PAUSED)


async def _moves(sandbox: Sandbox, domain: str, *holds: str) -> None:
    """Wait until none of these holds it, nor anything else does: what a paused guest is asked lies
    in its channel, before what it is to hear first when it goes on; and what is begun beside a
    frozen workload would not be frozen. TimedOut, Refused.
    """
    since = time.monotonic()
    while _held(sandbox, *holds):
        _check_there(sandbox, domain)
        if time.monotonic() - since > _STILL_S:
            raise TimedOut(f"sandbox {sandbox.record.id} stands still")
        await asyncio.sleep(_LONGEST_PAUSE_S)


async def _waited(woken: asyncio.Event, pause_s: float) -> bool:
    """Whether something new was there before the pause had passed."""
    try:
        async with asyncio.timeout(pause_s):
            await woken.wait()
    except TimeoutError:
        return False
    woken.clear()
    return True
