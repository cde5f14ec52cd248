"""Which host user each machine runs as. In memory; ledgers, and a folder for each number, are what
is on disk.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from vmdriver.errors import DriverError, Exhausted, Refused, Unavailable
from vmdriver.host.retry import tried
from vmdriver.lifecycle.engine.ledger import Ledger, Scope
from vmdriver.lifecycle.engine.owned import Owned
from vmdriver.lifecycle.engine.resource import MACHINE_USER, Given
from vmdriver.lifecycle.launch.ways import Ways
from vmdriver.lifecycle.ports.host import MachineUsers
from vmdriver.model.machine_uids import MachineUids
from vmdriver.model.plan import MachineUser

_log = logging.getLogger(__name__)


class UserPool:
    """Hands out numbers. One that was given back is not used again before the others."""

    def __init__(self, uids: MachineUids, taken: DriverError | None = None) -> None:
        """`taken`: somebody on this host has some of them too, so that nobody new gets any."""
        self.uids, self._taken = uids, taken
        self._avoided: set[int] = set()
        self._next = 0
        self.ways, self.owned = Ways(), Owned[int]()

    def adopt(self, owner: str, number: int) -> None:
        """Note one that a ledger holds."""
        self.owned.adopt(owner, number)
        numbers = self.uids.numbers
        if number in numbers:
            self._next = max(self._next, numbers.index(number) + 1)

    def avoid(self, numbers: set[int]) -> None:
        """Hand out none of these: something on disk belongs to them, and no ledger says whose."""
        self._avoided = numbers - self.held()

    def held(self) -> set[int]:
        """All numbers that somebody has."""
        return set(self.owned.now.values())

    def left(self) -> int:
        """How many numbers nobody has, or had of late."""
        numbers = self.uids.numbers  # perhaps a thousand million
        return len(numbers) - sum(n in numbers for n in self.held() | self._avoided)

    def holder(self, number: int) -> str | None:
        """Whose that number is."""
        return next((o for o, held in self.owned.now.items() if held == number), None)

    def number_of(self, owner: str) -> int | None:
        """The number that somebody has."""
        return self.owned.now.get(owner)

    def free(self, owner: str) -> None:
        """Give a number back that no ledger holds."""
        self.owned.free(owner)

    def take(self, owner: str, tried: set[int], *, modest: bool = False) -> int:
        """The number that it has, or one that nobody has and that was not tried, but for the last
        if `modest`. Exhausted; Refused where somebody else on this host has some.

        >>> pool = UserPool(MachineUids(250000, 250004))
        >>> pool.take("s1", set()), pool.take("s2", set()), pool.take("s1", set())
        (250002, 250003, 250002)
        """
        present = self.owned.now.get(owner)
        if present is not None and present not in tried:
            return present
        if self._taken is not None:
            raise Refused(
                self._taken.message,
                reason="MachineUidsTaken",
                resolution=f"{self._taken.resolution}, and restart the driver",
            )
        numbers = self.uids.numbers
        used = self.held() | self._avoided | tried
        turns = (self._next + step for step in range(len(numbers)))
        free = (numbers[turn % len(numbers)] for turn in turns)
        found = list(islice((n for n in free if n not in used), 1 + modest))
        if len(found) > modest:
            self.adopt(owner, found[0])
            return found[0]
        raise Exhausted(
            f"all {len(numbers)} user ids for machines ({self.uids}) are in use",
            reason="MachineUidsExhausted",
            resolution="delete sandboxes, or set machine_uids to a larger range",
        )


class _TakenError(Exception):
    """Something of a former owner is left."""


@dataclass(frozen=True)
class UserLease:
    """A host user of the machine's own; taken once and kept until delete, with every file."""

    pool: UserPool
    users: MachineUsers
    _clearing: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    key, needs = MACHINE_USER, ("uid",)

    async def acquire(
        self, owner: str, ledger: Ledger, *, modest: bool = False
    ) -> MachineUser:
        """The one that it has, or a new one, for a machine that is not there yet. Exhausted,
        HostError; Unavailable while something that was ended still runs as it. `modest`: for a
        machine of no sandbox, which leaves one free and has nobody give way; others do.
        """
        held = ledger.get(MACHINE_USER)
        if held is None or not held.done:
            return self.pool.uids.user(await self._take(owner, ledger, modest))
        number = int(held.data["uid"])
        if not await self.users.is_idle(number):
            raise Unavailable(
                f"a process that should have ended still runs as user {number}",
                reason="MachineUserBusy",
                resolution=f"look for it with ps -U {number}; start the sandbox again when "
                "it is gone",
            )
        return self.pool.uids.user(number)

    async def _take(self, owner: str, ledger: Ledger, modest: bool) -> int:
        taken: set[int] = set()
        while True:
            number = await self._next(owner, taken, modest)
            data, claim = {"uid": str(number)}, partial(self._claim, number)
            try:
                # Written at the latest with what its first file is noted with: before that it
                # is claimed once more.
                await ledger.acquire(
                    MACHINE_USER, Scope.PERSISTENT, data, claim, note_later=True
                )
            except _TakenError:
                taken.add(number)
            except BaseException:
                if ledger.get(MACHINE_USER) is None:  # not even noted
                    self.pool.free(owner)
                raise
            else:
                return number

    async def _next(self, owner: str, taken: set[int], modest: bool) -> int:
        with suppress(Exhausted):
            return self.pool.take(owner, taken, modest=modest)
        # What belonged to nobody who is known may be gone by now.
        left = await self.users.collect(self.pool.held(), all_known=False)
        self.pool.avoid(left)
        while True:
            try:
                return self.pool.take(owner, taken, modest=modest)
            except Exhausted:
                if modest or not await self.pool.ways.make_way():
                    raise

    async def _claim(self, number: int) -> None:
        if not await self.users.claim(number):
            raise _TakenError

    def pass_on(self, former: str, owner: str) -> None:
        """A former owner's number is this one's from now on, as its ledger says already. Its own
        is given back when nothing of it is left, which nobody waits for: until then it is
        nobody's, and a driver that begins again finds its folder.
        """
        number, own = self.pool.number_of(former), self.pool.number_of(owner)
        assert number is not None  # noqa: S101 - a machine has one
        self.pool.free(former)
        self.pool.adopt(owner, number)
        if own is not None:
            nobody = f"{owner}, before it had {number}"
            self.pool.adopt(nobody, own)
            work = asyncio.create_task(self._cleared(own, owner, nobody), name=nobody)
            self._clearing.add(work)
            work.add_done_callback(self._clearing.discard)

    async def _cleared(self, number: int, owner: str, holder: str) -> None:
        try:
            await tried(_log, self.users.clear(number, owner), f"user {number}")
        finally:
            self.pool.free(holder)

    async def release(self, given: Given) -> None:
        number = int(given["uid"])
        if self.pool.holder(number) not in {given.owner, None}:
            return  # it was passed on
        # An entry that was cut off may be of a number that was somebody's.
        if given.held.done or await self.users.claim(number):
            await self.users.clear(number, given.owner)
        self.pool.owned.returned(given)
