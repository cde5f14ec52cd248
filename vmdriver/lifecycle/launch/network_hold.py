"""A machine runs only while its network is what was made for it.

What others change is restored by the guard at once. Where that fails, the machine is held still
until the network is whole again: the record says so before the machine is paused, so that the next
driver does not take it for an operator's pause, and lets it go on.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from vmdriver.errors import DriverError
from vmdriver.lifecycle.engine.ledger import MACHINE
from vmdriver.lifecycle.engine.resource import FIREWALL, TAP
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.ports.host import Hypervisor
from vmdriver.lifecycle.ports.memory import MachineMemory
from vmdriver.lifecycle.ports.network_guard import NetworkGuard
from vmdriver.model.ids import mark
from vmdriver.model.phase import Action, DomainState, Intent, Phase
from vmdriver.model.plan import LaunchPlan

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NetworkHold:
    """Of all sandboxes."""

    guard: NetworkGuard
    hypervisor: Hypervisor
    memory: MachineMemory
    instance: str

    def is_due(self, plan: LaunchPlan) -> bool:
        """Whether a machine of that plan is to be held still."""
        return bool(self.guard.why_broken(plan.network.lease.tap))

    async def settle(self, sandbox: Sandbox) -> None:
        """In each turn, first: have the network of a machine that is there kept, also one of a
        driver before this; hold the machine still while that cannot be, and let it go on after.
        DriverError where it can be neither.
        """
        record, plan = sandbox.record, sandbox.record.plan
        held = [sandbox.ledger.get(key) for key in (TAP, FIREWALL, MACHINE)]
        if record.intent is Intent.DELETED or sandbox.going_down():
            return
        # A machine that could not be ended may be left when its network was given back already. One
        # that was confirmed has all of it, also where a kill came before that was noted.
        confirmed = record.phase is Phase.RUNNING
        if plan is None or not all(
            e is not None and (e.done or confirmed) for e in held
        ):
            if record.network_broken:  # there is nothing any more that stands still
                await sandbox.note(network_broken="", held_for_network=False)
            return
        sandbox.underway.doing = Action.LOOK
        await self._kept(sandbox, plan)
        why = self.guard.why_broken(plan.network.lease.tap)
        if why:
            await self._hold(sandbox, plan, why)
        elif record.network_broken:
            await self._let_go_on(sandbox, plan)

    async def _kept(self, sandbox: Sandbox, plan: LaunchPlan) -> None:
        """Whoever emptied the firewall while no driver ran did not mean to open it."""
        network = plan.network
        if self.guard.keeps(network.lease.tap):
            return
        try:
            owner = mark(self.instance, sandbox.record.id)
            broken = sandbox.record.network_broken
            await self.guard.keep(network, owner, mend=True, broken=broken)
        except DriverError as error:  # the guard tries again, and says when it gives up
            _log.warning("%s: %s", sandbox.record.id, error.text())

    async def _hold(self, sandbox: Sandbox, plan: LaunchPlan, why: str) -> None:
        """What stands still already is let go on by whoever has stopped it, not by us."""
        runs = await self.hypervisor.observe(plan.domain) is DomainState.RUNNING
        ours = runs or sandbox.record.held_for_network
        await sandbox.note(network_broken=why, held_for_network=ours)
        if runs:
            await self.memory.pause(plan.domain)

    async def _let_go_on(self, sandbox: Sandbox, plan: LaunchPlan) -> None:
        if sandbox.record.held_for_network:
            await self.memory.go_on(plan.domain)
        await sandbox.note(network_broken="", held_for_network=False)
