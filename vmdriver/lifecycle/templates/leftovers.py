"""Gives back what nobody's machines hold: those of templates under way and of forks that wait.

No ledger knows of it. What cannot be given back is kept and tried again while the driver runs;
what is left when it ends, the next driver's sweep finds by its marks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from vmdriver.errors import DriverError, Unavailable
from vmdriver.host.retry import backoff_s
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.launch.marked import marked, remove
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.model import ids
from vmdriver.model.plan import LaunchPlan

_log = logging.getLogger(__name__)
_FIRST_S, _MOST_S = 0.5, 60.0


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Belongings:
    """What there may be of one owner; each of it may be gone already, or never have been."""

    owner: str
    """Its id in marks and leases, or any other name that nobody else has."""
    plan: LaunchPlan | None = None
    """Names its machine, tap, table and address; None where there are files only."""
    directories: tuple[str, ...] = ()
    """Memory images and what lies beside them."""
    layer: str = ""
    """Of the root disk; "" where it is somebody else's."""
    claimed: bool = False
    """A sandbox may have taken a part over: only what still carries the owner's mark goes."""
    given_back: Callable[[], None] = _nothing
    """Called once all of it is gone."""


@dataclass
class _Kept:
    one: Belongings
    memory_mib: int
    """Of its machine, while that may be there."""


class Leftovers:
    """All of them in this driver. Machines are ended first: they hold the rest."""

    def __init__(
        self, ports: Ports, instance: str, pool: AddressPool, first_s: float = _FIRST_S
    ) -> None:
        self._ports, self._instance, self._pool = ports, instance, pool
        self._first_s = first_s
        self._kept: dict[str, _Kept] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closed = False

    def has(self, owner: str) -> bool:
        """Whether something of it could not be given back yet."""
        return owner in self._kept

    def machines(self) -> int:
        """How many machines could not be ended."""
        return sum(1 for kept in self._kept.values() if kept.memory_mib)

    def memory_mib(self) -> int:
        """What those machines may take."""
        return sum(kept.memory_mib for kept in self._kept.values())

    async def give_back(self, one: Belongings) -> None:
        """Have all of it gone, now or later. The address stays leased as long as there may
        be a machine, a tap or a table.
        """
        kept = _Kept(one, one.plan.memory_mib if one.plan is not None else 0)
        text = "%s: it cannot be given back now, and is tried again: %s"
        try:
            await self._end(kept, looked=one.claimed)
        except DriverError as error:
            _log.warning(text, one.owner, error.text())
            self._keep(kept)
        except Exception as error:  # noqa: BLE001 - a bug leaves it to nobody else
            _log.exception(text, one.owner, type(error).__name__)
            self._keep(kept)
        except asyncio.CancelledError:
            self._keep(kept)
            raise
        else:
            one.given_back()

    async def remove_files(self, directory: str, layer: str = "") -> None:
        """Have a memory image gone, and the layer that it stands on where it is nobody else's."""
        await self.give_back(
            Belongings(directory, directories=(directory,), layer=layer)
        )

    async def close(self) -> None:
        """Try no more: what is left is the next driver's."""
        self._closed = True
        tasks = set(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _keep(self, kept: _Kept) -> None:
        owner = kept.one.owner
        self._kept[owner] = kept
        if not self._closed:
            task = asyncio.create_task(self._again(kept), name=f"leftovers of {owner}")
            self._tasks[owner] = task

    async def _again(self, kept: _Kept) -> None:
        owner, attempt = kept.one.owner, 0
        while True:
            wait_s = backoff_s(attempt, first_s=self._first_s, most_s=_MOST_S)
            await asyncio.sleep(wait_s)
            attempt += 1
            try:
                await self._end(kept, looked=True)
            except Exception as error:  # noqa: BLE001 - told when it was kept
                _log.debug("%s: it still cannot be given back: %s", owner, error)
            else:
                break
        del self._kept[owner], self._tasks[owner]
        _log.info("%s: all of it is given back now", owner)
        kept.one.given_back()

    async def _end(self, kept: _Kept, *, looked: bool) -> None:
        """One try; the first failure ends it, since what comes later is held by what comes
        first. `looked`: only what is found to carry the owner's mark.
        """
        one, ports = kept.one, self._ports
        rest = False
        if one.plan is not None and looked:
            rest = await self._end_marked(one, one.plan, kept)
        elif one.plan is not None:
            tap = one.plan.network.lease.tap
            await ports.hypervisor.destroy(one.plan.domain)
            kept.memory_mib = 0
            await ports.network.remove_rules(tap)
            await ports.network.remove_tap(tap, ids.mark(self._instance, one.owner))
        self._pool.free(one.owner)
        for directory in one.directories:
            await ports.memory_store.remove(directory)
        if one.layer:
            await ports.disks.remove(one.layer)
        if rest:
            raise Unavailable("its table goes when the sandbox with its address does")

    async def _end_marked(self, one: Belongings, plan: LaunchPlan, kept: _Kept) -> bool:
        """True: a table stays, since a sandbox has the address, and loads its own under that
        name at any moment.
        """
        rest = False
        for found in await marked(self._ports):
            if found.sandbox_id != one.owner:
                continue
            holder = self._pool.holder(plan.network.lease.index)
            if found.kind == "firewall" and holder not in {one.owner, None}:
                rest = True
            else:
                await remove(self._ports, found, self._instance)
        kept.memory_mib = 0
        return rest
