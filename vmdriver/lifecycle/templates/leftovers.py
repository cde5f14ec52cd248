"""Gives back what machines of no sandbox hold: those of templates under way and of forks that wait.

Their ledgers are in memory. What cannot be given back is kept and tried again while the driver
runs; what is left when it ends, the next driver's sweep finds by its marks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from vmdriver.errors import DriverError, Unavailable
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.engine.ledger import (
    MACHINE,
    Held,
    Ledger,
    Scope,
    VolatileJournal,
)
from vmdriver.lifecycle.engine.resource import (
    CHECKPOINT_PART,
    FIREWALL,
    LEASE,
    MACHINE_USER,
    OVERLAY,
    Given,
    Resources,
)
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.marked import KEYS, marked
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model.plan import Lease

_log = logging.getLogger(__name__)
_FIRST_S, _MOST_S = 0.5, 60.0


def _nothing() -> None:
    pass


@dataclass(eq=False)
class Unowned:
    """A machine of no sandbox, or what is left of one."""

    owner: str
    """Its id in marks and leases, or any other name that nobody else has."""
    memory_mib: int = 0
    """Of its machine."""
    ledger: Ledger = field(default_factory=lambda: Ledger(VolatileJournal()))
    claimed: bool = False
    """A sandbox may have taken a part over: only what still carries the owner's mark goes."""
    given_back: Callable[[], None] = _nothing
    """Called once all of it is gone."""


class Leftovers:
    """All of them in this driver."""

    def __init__(
        self,
        ports: Ports,
        resources: Resources,
        addresses: AddressPool,
        first_s: float = _FIRST_S,
    ) -> None:
        self._ports, self._resources, self._addresses = ports, resources, addresses
        self._first_s = first_s
        self._kept: dict[str, Unowned] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def has(self, owner: str) -> bool:
        """Whether something of it could not be given back yet."""
        return owner in self._kept

    def _sizes(self) -> list[int]:
        kept = self._kept.values()
        return [one.memory_mib for one in kept if one.ledger.get(MACHINE) is not None]

    def machines(self) -> int:
        """How many machines could not be ended."""
        return len(self._sizes())

    def memory_mib(self) -> int:
        """What those machines may take."""
        return sum(self._sizes())

    async def give_back(self, one: Unowned) -> None:
        """Have all of it gone, now or later."""
        text = "%s: it cannot be given back now, and is tried again: %s"
        try:
            await self._end(one)
        except DriverError as error:
            _log.warning(text, one.owner, error.text())
            self._keep(one)
        except Exception as error:  # noqa: BLE001 - a bug leaves it to nobody else
            _log.exception(text, one.owner, type(error).__name__)
            self._keep(one)
        except asyncio.CancelledError:
            self._keep(one)
            raise
        else:
            one.given_back()

    async def remove_files(self, directory: str, layer: str = "") -> None:
        """Have a checkpoint gone, and the layer that it stands on where it is nobody else's."""
        held = [Held(OVERLAY, Scope.PERSISTENT, {"path": layer})] if layer else []
        held.append(Held(CHECKPOINT_PART, Scope.CAPTURE, {"directory": directory}))
        ledger = Ledger(VolatileJournal(*held))
        await self.give_back(Unowned(directory, ledger=ledger))

    async def close(self) -> None:
        """Try no more: what is left is the next driver's."""
        self._closed = True
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _keep(self, one: Unowned) -> None:
        self._kept[one.owner] = one
        if not self._closed:
            name = f"leftovers of {one.owner}"
            self._tasks[one.owner] = asyncio.create_task(self._again(one), name=name)

    async def _again(self, one: Unowned) -> None:
        attempt = 0
        while True:
            wait_s = backoff_s(attempt, first_s=self._first_s, most_s=_MOST_S)
            await asyncio.sleep(wait_s)
            attempt += 1
            try:
                await self._end(one)
            except Exception as error:  # noqa: BLE001 - told when it was kept
                text = "%s: it still cannot be given back: %s"
                _log.debug(text, one.owner, error)
            else:
                break
        del self._kept[one.owner], self._tasks[one.owner]
        _log.info("%s: all of it is given back now", one.owner)
        one.given_back()

    async def _end(self, one: Unowned) -> None:
        """One try. What belongs to the run first, the machine before all: it holds the rest, and
        must not run without its table.
        """
        carried = set(KEYS.values())
        if one.claimed:
            found = await marked(self._ports)
            carried = {KEYS[f.kind] for f in found if f.sandbox_id == one.owner}
        ended, errors = one.ledger.get(MACHINE) is None, []

        async def undo(held: Held) -> None:
            nonlocal ended
            if not ended and held.key != MACHINE:
                raise Unavailable("its machine is there still, and holds it")
            await self._undo(one, carried, held)
            ended = True  # nothing is given back before the machine

        for scope in Scope:
            errors += await one.ledger.release(scope, undo, level=logging.DEBUG)
        if errors:
            raise errors[0]

    async def _undo(self, one: Unowned, carried: set[str], held: Held) -> None:
        """`carried`: what may have its mark; another thing that bears marks is gone, or is a
        sandbox's by now.
        """
        if held.key in set(KEYS.values()) - carried:
            return
        if held.key == FIREWALL and one.claimed and self._has_moved(one):
            # That sandbox loads its own under the same name at any moment.
            raise Unavailable("its table goes when the sandbox with its address does")
        if held.key in {LEASE, MACHINE_USER} and one.ledger.held(Scope.RUNTIME):
            raise Unavailable("its address and user are leased while anything is left")
        await self._resources.release(Given(held, one.owner, one.ledger))

    def _has_moved(self, one: Unowned) -> bool:
        """Whether somebody else has its address."""
        lease = one.ledger.get(LEASE)
        index = Lease.model_validate(lease.data).index if lease is not None else -1
        return self._addresses.holder(index) not in {one.owner, None}
