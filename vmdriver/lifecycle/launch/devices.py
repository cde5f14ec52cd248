"""Which of the host's devices each machine has: one owner at a time, from the launch that decides
on them until they are given back. In memory; ledgers are what is on disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydantic import TypeAdapter, ValidationError

from vmdriver.errors import StorageError
from vmdriver.lifecycle.engine.ledger import Held, Ledger
from vmdriver.lifecycle.engine.owned import Owned
from vmdriver.lifecycle.engine.resource import DEVICES, Given
from vmdriver.lifecycle.launch.devices_asked import (
    check_accelerator,
    check_allowed,
    wanted_devices,
)
from vmdriver.lifecycle.launch.resources import MachineSource, Part
from vmdriver.lifecycle.ports.devices import HostDevices
from vmdriver.lifecycle.ports.host import AcceleratorChoice
from vmdriver.model.devices import (
    DevicePicture,
    PassedFunction,
    WantedDevices,
    chosen,
)
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord

_FUNCTIONS = TypeAdapter(tuple[PassedFunction, ...])


class DevicePool:
    """Who has what, by address."""

    def __init__(self) -> None:
        self.owned = Owned[frozenset[str]]()

    def adopt(self, owner: str, functions: Iterable[PassedFunction]) -> None:
        """They are that owner's, as its ledger says, or as was just decided."""
        present = self.owned.now.get(owner, frozenset())
        self.owned.adopt(owner, present | {f.address for f in functions})

    def adopt_free(self, owner: str, functions: Iterable[PassedFunction]) -> None:
        """They may be that owner's: those that nobody is known to have are kept for it."""
        taken = self.owners()
        self.adopt(owner, [f for f in functions if f.address not in taken])

    def free(self, owner: str) -> None:
        """It has none any more."""
        self.owned.free(owner)

    def owner(self, address: str) -> str | None:
        """Whose it is."""
        return self.owners().get(address)

    def taken(self, but: str) -> set[str]:
        """What somebody else has."""
        return {a for a, owner in self.owners().items() if owner != but}

    def owners(self) -> Mapping[str, str]:
        """By address."""
        return {a: o for o, having in self.owned.now.items() for a in having}


def functions_of(held: Held) -> tuple[PassedFunction, ...]:
    """What such an entry of a ledger is about. StorageError."""
    try:
        return _FUNCTIONS.validate_json(str(held.data["functions"]))
    except (KeyError, ValidationError) as error:
        raise StorageError(
            "its ledger does not say which devices it has", detail=str(error)
        ) from error


def entry_data(functions: tuple[PassedFunction, ...]) -> Mapping[str, str]:
    """What such an entry says."""
    return {"functions": json.dumps([f.model_dump() for f in functions])}


def passed_devices(host: HostDevices, pool: DevicePool) -> Part:
    """The functions that the plan names, away from the host's drivers. They are somebody else's to
    have only when they are back.
    """

    async def acquire(source: MachineSource) -> None:
        assert source.plan.user is not None  # noqa: S101 - a machine that boots has one
        await host.give(source.plan.passed, source.plan.user)

    async def release(given: Given) -> None:
        await host.take_back(functions_of(given.held))
        pool.owned.returned(given)

    return Part(
        DEVICES,
        ("functions",),
        data=lambda source: entry_data(source.plan.passed),
        acquire=acquire,
        release=release,
        applies=lambda source: bool(source.plan.passed),
    )


@dataclass(kw_only=True)
class Devices:
    """Decides who gets which. `records`: of all sandboxes."""

    host: HostDevices
    accelerator: AcceleratorChoice
    allowed: tuple[str, ...]
    records: Callable[[], Iterable[SandboxRecord]]
    pool: DevicePool
    _seen: DevicePicture = field(default_factory=DevicePicture, init=False)
    """The last look."""

    async def admit(self, record: SandboxRecord) -> None:
        """Whether that sandbox could have all that it asks for. Refused, Exhausted, HostError."""
        wanted = wanted_devices(record.spec)
        if not wanted:
            return
        await self._look(wanted)
        self.check_room(record)

    async def _look(self, wanted: WantedDevices) -> None:
        """Nobody waits for what can never be had."""
        check_allowed(wanted, self.allowed)
        check_accelerator(wanted, await self.accelerator.chosen())
        self._seen = await self.host.look(self.allowed)

    def check_room(self, record: SandboxRecord) -> None:
        """The same beside those who are to run and have not chosen yet, without looking again:
        two creates at once do not both get the last one. Exhausted.
        """
        wanted = wanted_devices(record.spec)
        if not wanted:
            return
        waiting = sum(others.gpus for others in self._waiting(record.id))
        taken = self._spoken_for(record.id)
        chosen(wanted, self._seen, self.allowed, taken, waiting)

    def _spoken_for(self, but: str) -> set[str]:
        """Addresses, with what goes along, that others have, or are to have by name."""
        return self.pool.taken(but) | self._named(but)

    def _named(self, but: str) -> set[str]:
        named = {a for w in self._waiting(but) for a in w.addresses}
        together = (self._seen.together_with(address) for address in named)
        return named.union(*({f.address for f in members} for members in together))

    def _waiting(self, but: str) -> list[WantedDevices]:
        """What others that are coming up ask for, and do not have yet."""
        having = {but, *self.pool.owners().values()}
        return [
            wanted_devices(record.spec)
            for record in self.records()
            if record.intent is Intent.RUNNING
            and record.phase is not Phase.FAILED
            and record.id not in having
        ]

    async def choose(self, record: SandboxRecord) -> tuple[PassedFunction, ...]:
        """What its machine gets; its own from here on. Refused, Exhausted, HostError."""
        wanted = wanted_devices(record.spec)
        if not wanted:
            return ()
        await self._look(wanted)
        # Nothing is waited for between looking who has what and taking it.
        taken = self.pool.taken(but=record.id)
        named = self._named(but=record.id)
        functions = chosen(wanted, self._seen, self.allowed, taken, named=named)
        self.pool.adopt(record.id, functions)
        return functions

    def held(self) -> set[str]:
        """Which of those that are allowed somebody has, also as one that only goes along."""
        return set(self.allowed) & self.pool.owners().keys()

    async def gone(self) -> dict[str, str]:
        """Owners of what somebody has and is not on the host any more, by address. HostError."""
        owners = self.pool.owners()
        if not owners:
            return {}
        there = (await self.host.look(tuple(owners))).functions
        return {a: o for a, o in owners.items() if a not in there}

    @contextmanager
    def while_launching(self, owner: str, ledger: Ledger) -> Iterator[None]:
        """Inside, what the owner chooses is its own. Afterwards too, if its ledger says so."""
        try:
            yield
        finally:
            if ledger.get(DEVICES) is None:
                self.pool.free(owner)
