"""Forks of templates that wait at the barrier, loaded and paused, for somebody to be.

They are unowned: what they hold carries marks of no sandbox, so that the next driver's sweep
removes what this one leaves. Whoever claims one takes its address, its user, its disk layer and
its machine over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from secrets import token_hex

from vmdriver.errors import DriverError
from vmdriver.host.log_context import at_nothing
from vmdriver.host.retry import backoff_s, tried
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.resource import FILES, OVERLAY
from vmdriver.lifecycle.launch import planner
from vmdriver.lifecycle.launch.memory_budget import MemoryBudget
from vmdriver.lifecycle.launch.resources import (
    AddressLease,
    Effects,
    MachineSource,
    Part,
    take,
)
from vmdriver.lifecycle.launch.translation import bounded
from vmdriver.lifecycle.launch.users import UserLease
from vmdriver.lifecycle.launch.wall import Wall
from vmdriver.lifecycle.launch.walled import walled
from vmdriver.lifecycle.memory.resources import CheckpointPart
from vmdriver.lifecycle.ports.paths import Paths
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.lifecycle.ports.worlds import Ports
from vmdriver.lifecycle.templates.leftovers import Leftovers, Unowned
from vmdriver.lifecycle.templates.template import Template, Templates, on_template
from vmdriver.model.ids import mark
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan

_log = logging.getLogger(__name__)
_UNMEASURED_MIB = 32
"""What a paused fork counts as where it cannot be measured, and one that cannot be ended."""
_ENDED = {DomainState.ABSENT, DomainState.OFF, DomainState.CRASHED}
REPLACED_S, MOST_S = 1.0, 60.0
"""Until one that has ended by itself is replaced: where all of them do, not over and over."""


@dataclass(frozen=True)
class Waiting:
    """A machine at the barrier."""

    unowned: Unowned
    template: Template
    """What it was forked from: not only of that key, but of that very build."""
    plan: LaunchPlan
    held_mib: int = _UNMEASURED_MIB
    """What its process has of the host's memory. It stands still, and comes to no more."""

    @property
    def owner(self) -> str:
        """Its id in marks and leases."""
        return self.unowned.owner


class WarmPool:
    """Keeps `warm_pool` machines of each template waiting."""

    def __init__(
        self,
        *,
        ports: Ports,
        settings: Settings,
        paths: Paths,
        lease: AddressLease,
        user: UserLease,
        wall: Wall,
        parts: Sequence[Part],
        templates: Templates,
        directory: str,
        leftovers: Leftovers,
        budget: MemoryBudget,
    ) -> None:
        self._budget = budget
        self._ports, self._settings, self._paths = ports, settings, paths
        self._lease, self._user, self._wall = lease, user, wall
        self._parts = parts
        self._templates, self._directory = templates, directory
        self._leftovers = leftovers
        self._waiting: list[Waiting] = []
        self._claimed: list[Waiting] = []
        self._making_mib = 0
        """What the one counts as that is being made."""
        self._last_mib = _UNMEASURED_MIB
        """What the last that was made held."""
        self._closed = False
        self._filler: asyncio.Task[None] | None = None
        self._looks: set[asyncio.Task[None]] = set()
        self._ended = 0
        """How many have ended by themselves since one was of use."""
        self._to_replace: list[Waiting] = []
        """Ended ones that are not replaced yet: nothing else is made in their stead."""
        templates.tell(before=self.keep_within, after=self.refill, gone=self.drop)
        user.pool.ways.tell(self.make_way)
        lease.addresses.ways.tell(self.make_way)

    @property
    def most(self) -> int:
        """How many should wait on each template."""
        return self._settings.warm_pool

    async def recover(self) -> None:
        """Remove what a driver before this one left, and begin to fill."""
        await self._ports.launch_files.remove_abandoned(self._directory, set())
        self.refill()

    def refill(self) -> None:
        """Make what is missing, in the background."""
        if self._closed:
            return
        if self._settings.warm_pool and (self._filler is None or self._filler.done()):
            self._filler = asyncio.create_task(
                self._fill(), name="warm pool", context=at_nothing()
            )

    def count(self, key: str) -> int:
        """How many wait for that template."""
        return sum(1 for waiting in self._waiting if waiting.template.key == key)

    def layers(self) -> set[str]:
        """Their disks' layers, also of those that were claimed and are not settled yet."""
        both = self._waiting + self._claimed
        return {w.plan.disk("root").path for w in both}

    def claim(self, template: Template) -> Waiting | None:
        """One that waits on that very template. It is unowned still: `settle` or `discard`
        must follow.
        """
        for waiting in self._waiting:
            if waiting.template.layer == template.layer:
                self._waiting.remove(waiting)
                self._claimed.append(waiting)
                waiting.unowned.claimed = True
                return waiting
        return None

    def settle(self, one: Waiting) -> None:
        """A sandbox's ledger answers for all of it from now on."""
        self._claimed.remove(one)
        self._ended = 0
        self.refill()

    def hint(self, domain: str) -> None:
        """That machine may have changed: one that waits and has ended is replaced."""
        for one in self._waiting:
            if one.plan.domain == domain and not self._closed:
                look = tried(_log, self._replace_if_ended(one), f"warm pool: {domain}")
                task = asyncio.create_task(look, name=f"look at {one.owner}")
                self._looks.add(task)
                task.add_done_callback(self._looks.discard)

    async def _replace_if_ended(self, one: Waiting) -> None:
        state = await self._ports.hypervisor.observe(one.plan.domain)
        if state not in _ENDED or one not in self._waiting:
            return
        self._waiting.remove(one)
        self._to_replace.append(one)
        _log.warning("warm pool: %s has ended by itself, and is replaced", one.owner)
        pause_s = backoff_s(self._ended, first_s=REPLACED_S, most_s=MOST_S)
        self._ended += 1
        try:
            await self.discard(one)
            await asyncio.sleep(pause_s)
        finally:
            self._to_replace.remove(one)
        self.refill()

    async def close(self) -> None:
        """End them all; they are of no use to the next driver."""
        self._closed = True
        under_way = {*self._looks, *([self._filler] if self._filler else [])}
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)
        waiting, self._waiting = self._waiting, []
        await asyncio.gather(*(self.discard(one) for one in waiting))

    async def drop(self, template: Template) -> None:
        """End those of a template that is no more."""
        while (one := self.claim(template)) is not None:
            await self.discard(one)

    async def make_way(self) -> bool:
        """End one, for a sandbox that needs what it holds. False: none waits."""
        if not self._waiting:
            return False
        await self.discard(self._waiting.pop())
        return True

    async def _fill(self) -> None:
        keep = {one.owner for one in self._waiting + self._claimed}
        await self._ports.launch_files.remove_abandoned(self._directory, keep)
        await self.keep_within()
        while (template := self._wanting()) is not None:
            if not self._has_room():
                return
            try:
                await self._add(template)
            except DriverError as error:
                _log.warning("warm pool: %s", error.text())
                return
            except Exception:  # noqa: BLE001 - a bug here must not go unsaid
                _log.exception("warm pool: a machine could not be made")
                return
            # A sandbox may have come meanwhile, which could not have this one give way.
            await self.keep_within()

    def held_mib(self) -> int:
        """Host memory of those that wait, of one that is being made, and of those that should not
        be there any more.
        """
        stuck = self._leftovers.machines() * _UNMEASURED_MIB
        waiting = sum(one.held_mib for one in self._waiting)
        return stuck + waiting + self._making_mib

    def _next_mib(self) -> int:
        """What one more counts as before it is there."""
        return max((one.held_mib for one in self._waiting), default=self._last_mib)

    def _has_room(self) -> bool:
        """Whether one more stays within both limits of the operator's."""
        held, count, one = self.held_mib(), len(self._waiting), self._next_mib()
        # One waits even where none is as small as its limit.
        least = one if count else _UNMEASURED_MIB
        within = held + least <= self._settings.warm_pool_memory_mib
        if not within or held + one > self._left_mib():
            limit = "max_committed_mem_mib" if within else "warm_pool_memory_mib"
            _log.info("warm pool: %d machines wait, %s is used", count, limit)
            return False
        return True

    def _left_mib(self) -> int:
        """What sandboxes, and a template under way, leave of the memory that all machines may
        take together.
        """
        others = self._budget.committed_mib() + self._templates.building_mib
        return self._settings.max_committed_memory_mib - others

    async def keep_within(self) -> None:
        """End as many as there is no memory for beside the sandboxes."""
        while self._waiting and self.held_mib() > self._left_mib():
            await self.discard(self._waiting.pop())

    def _wanting(self) -> Template | None:
        """A template that fewer machines wait on than should."""
        few = self._settings.warm_pool
        for template in self._templates.listed():
            ended = [o for o in self._to_replace if o.template.layer == template.layer]
            if self.count(template.key) + len(ended) < few:
                return template
        return None

    async def _add(self, template: Template) -> None:
        """One machine more, if its template is still there when it is made."""
        async with self._templates.hold(template):
            one = await self._make(template)
            # No await between the look and the list: `drop` finds it there.
            if self._templates.is_there(template):
                self._waiting.append(one)
                self.hint(one.plan.domain)  # it may have ended before anybody cared
                return
            _log.info("warm pool: template %s is no more", template.key)
            await self.discard(one)

    async def _make(self, template: Template) -> Waiting:
        one = Unowned(f"warm-{token_hex(6)}", template.manifest.plan.memory_mib)
        self._making_mib = self._next_mib()
        try:
            plan = await self._load(template, one)
            held = self._last_mib = await self._held_mib(plan.domain)
        except BaseException:
            await self._leftovers.give_back(one)
            raise
        finally:
            self._making_mib = 0
        return Waiting(one, template, plan, held)

    async def _load(self, template: Template, one: Unowned) -> LaunchPlan:
        """What a launch acquires, from the template's memory, and left paused."""
        ports, instance = self._ports, self._settings.instance
        directory = f"{self._directory}/{one.owner}"
        lease = await self._lease.acquire(one.owner, one.ledger, modest=True)
        plan = planner.as_unowned(
            template.manifest.plan, instance, one.owner, directory
        )
        user = await self._user.acquire(one.owner, one.ledger, modest=True)
        layer = self._paths.new_layer(one.owner, user)
        plan = planner.with_lease(on_template(plan, template, layer), lease)
        plan = planner.with_user(bounded(walled(plan, self._settings)), user)
        plan = await self._wall.around(plan)
        await CheckpointPart(ports.memory_store).acquire(one.ledger, directory, 0)
        owner = mark(instance, one.owner)

        async def load() -> None:
            saved = await ports.memory_store.saved(template.directory)
            scratch = f"{directory}/load.image"
            await ports.memory.load(plan, owner, saved, scratch)

        write = partial(ports.launch_files.write_for_template, plan)
        instead: Effects = {FILES: write, MACHINE: load}
        source = MachineSource(plan, owner, instead=instead, paused=True)
        await take(one.ledger, self._parts, source)
        return plan

    async def _held_mib(self, domain: str) -> int:
        return await self._ports.hypervisor.held_mib(domain) or _UNMEASURED_MIB

    async def discard(self, one: Waiting, *, keep_layer: bool = False) -> None:
        """End it and give everything back that nobody has taken over. `keep_layer`: its disk is
        a sandbox's by now.
        """
        if keep_layer:
            await one.unowned.ledger.hand_over(OVERLAY)
        await self._leftovers.give_back(one.unowned)
        if one in self._claimed:
            self._claimed.remove(one)
            self.refill()
