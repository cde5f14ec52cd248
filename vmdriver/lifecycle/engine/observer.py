"""What libvirt and a guest say of a sandbox's machine."""

from __future__ import annotations

from typing import NamedTuple

from vmdriver.host import facts
from vmdriver.lifecycle.engine.ledger import MACHINE, Scope
from vmdriver.lifecycle.engine.sandbox import Sandbox
from vmdriver.lifecycle.ports.host import Disks, GuestReport, Hypervisor
from vmdriver.model.phase import (
    SAID,
    DomainState,
    MachineState,
    Phase,
    machine_state,
)

_CONFIRMED = {Phase.RUNNING, Phase.SUSPENDING}
"""Phases of a machine whose guest has said that it started."""


class Seen(NamedTuple):
    """One look."""

    machine: MachineState
    report: GuestReport = GuestReport()


class Observer:
    """Looks; changes nothing."""

    def __init__(self, *, hypervisor: Hypervisor, disks: Disks) -> None:
        self._hypervisor, self._disks = hypervisor, disks

    async def look(self, sandbox: Sandbox) -> Seen:
        """At its machine now. DriverError when nobody says."""
        record, held = sandbox.record, sandbox.ledger.get(MACHINE)
        plan = record.plan
        if plan is None or held is None:
            return Seen(MachineState.ABSENT)
        domain = await self._hypervisor.observe(plan.domain)
        report = await self._disks.report(plan.disk("status").path)
        record = sandbox.record
        half_way = not held.done and report.phase not in SAID
        if half_way and (domain is not DomainState.RUNNING or plan.template):
            # A start that was cut off: defined, perhaps paused, never let go; or loaded
            # from a template and never told who it is.
            domain = DomainState.ABSENT
        if domain is DomainState.PAUSED and _is_unowned_pause(sandbox):
            domain = DomainState.STALLED
        rebooted = record.host_boot_id != facts.boot_id()
        if rebooted and domain in {DomainState.OFF, DomainState.CRASHED}:
            # It ended with the host, unless it had said before that it was ending by itself.
            domain = domain if report.phase == "exited" else DomainState.ABSENT
        said = report.phase
        if record.phase in _CONFIRMED and said not in {"exited", "failed"}:
            # It has started once, and cannot take that back by scribbling on its disk.
            said = "started"
        return Seen(machine_state(domain, said), report)


def _is_unowned_pause(sandbox: Sandbox) -> bool:
    """A running machine is paused by us for captures only."""
    running = sandbox.record.phase is Phase.RUNNING
    return running and not sandbox.ledger.held(Scope.CAPTURE)
