"""What the gateway is shown, as a closed table.

The gateway derives its phase from type, status and reason (contract §2.9). A reason
outside its list of transient ones is a terminal error for it, so while anything may
still come up the reason is always `Starting`; progress travels in platform events only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord


@dataclass(frozen=True)
class Condition:
    """One condition of a sandbox's status."""

    type: str
    status: str
    reason: str
    message: str
    changed_at: datetime


@dataclass(frozen=True)
class Standstill:
    """Why a machine that is meant to run stands still. `reason` is its events'."""

    reason: str
    message: str
    since: datetime


def network_standstill(record: SandboxRecord) -> Standstill | None:
    """Of a machine that is held still since its network is not what was made for it."""
    if not record.network_broken:
        return None
    text = (
        f"{record.network_broken}; it goes on by itself when its network is whole, and a stop "
        "and a start make it anew"
    )
    return Standstill("NetworkBroken", text, record.changed_at)


@dataclass(frozen=True)
class SandboxStatus:
    """A sandbox as it is shown outside: everything but the spec."""

    id: str
    name: str
    namespace: str
    workspace: str
    instance_id: str
    conditions: tuple[Condition, ...]
    deleting: bool = False


@dataclass(frozen=True)
class PlatformEvent:
    """Something worth telling: `type` is Normal or Warning, `metadata` may carry
    progress keys (contract §2.14).
    """

    reason: str
    message: str
    at: datetime
    type: str = "Normal"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """A provisioning step as the gateway's command line shows it."""

    complete_step: str = ""
    complete_label: str = ""
    active_step: str = ""
    active_detail: str = ""

    def metadata(self) -> dict[str, str]:
        """The keys that are set."""
        prefix = "openshell.progress."
        return {prefix + key: value for key, value in vars(self).items() if value}


def _condition(
    record: SandboxRecord, still: Standstill | None
) -> tuple[str, str, str, str]:
    failure = record.failure
    if record.intent is Intent.DELETED or record.phase is Phase.DELETING:
        return "Ready", "False", "Deleting", "the sandbox is being deleted"
    # One that is meant to run is on its way up, also where a return to a snapshot goes through
    # these phases: a row that has once seen Suspended stays Stopped.
    meant_to_run = record.intent is Intent.RUNNING
    if record.phase is Phase.STOPPED and not meant_to_run:
        return "Suspended", "True", "Stopped", "the machine is down; its disk is kept"
    if record.phase is Phase.SUSPENDED and not meant_to_run:
        text = "the machine is suspended; its memory and disk are kept"
        return "Suspended", "True", "Suspended", text
    if record.intent in {Intent.STOPPED, Intent.SUSPENDED}:
        return "Ready", "False", "Starting", "the machine is being stopped"
    if failure is not None and not failure.will_retry:
        return "Ready", "False", failure.reason, failure.message
    if still is not None and record.phase in {Phase.RUNNING, Phase.LAUNCHING}:
        # One of the gateway's transient reasons: its phase is Provisioning, not Error.
        text = f"the machine stands still: {still.message}"
        return "Ready", "False", "DependenciesNotReady", text
    if record.phase is Phase.RUNNING:
        note = f"; {record.note}" if record.note else ""
        return "Ready", "True", "Running", f"the machine is running{note}"
    again = f" again: {failure.message}" if failure is not None else ""
    return "Ready", "False", "Starting", f"the machine is starting{again}"


def status_of(record: SandboxRecord, still: Standstill | None = None) -> SandboxStatus:
    """The one condition that a record is shown as, and its machine where that stands still."""
    kind, status, reason, message = _condition(record, still)
    changed_at = max(record.changed_at, still.since) if still else record.changed_at
    spec = record.spec
    return SandboxStatus(
        id=spec.id,
        name=spec.name,
        namespace=spec.namespace,
        workspace=spec.workspace,
        instance_id=record.plan.domain_uuid if record.plan else "",
        conditions=(Condition(kind, status, reason, message, changed_at),),
        deleting=record.intent is Intent.DELETED,
    )
