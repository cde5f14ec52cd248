"""What we know of one sandbox, durably: the wish, the phase, the plan and the last
failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from vmdriver.model.phase import Intent, Phase
from vmdriver.model.plan import LaunchPlan, Lease
from vmdriver.model.spec import Frozen, SandboxSpec

MAIN_PROCESS_EXITED = "MainProcessExited"
MACHINE_CRASHED = "MachineCrashed"
PROVISIONING_FAILED = "ProvisioningFailed"


class Failure(Frozen):
    """Why a sandbox is not running although it was meant to."""

    reason: str
    message: str
    exit_code: int | None = None
    will_retry: bool = False
    """True: the machine is started again; the gateway must not see a terminal reason.
    """


class ExtensionState(Frozen):
    """Which extensions take part in this sandbox's life; decided once, at create."""

    active: tuple[str, ...] = ()


class SandboxRecord(Frozen):
    """One sandbox's record.json."""

    schema_version: Literal[1] = 1
    spec: SandboxSpec
    intent: Intent = Intent.RUNNING
    phase: Phase = Phase.NEW
    created_at: datetime
    changed_at: datetime
    """When the published condition last changed."""
    plan: LaunchPlan | None = None
    lease: Lease | None = None
    failure: Failure | None = None
    launches: int = 0
    """How many times a machine was started for it."""
    crash_restarts: int = 0
    """How many of these were restarts after a crash, since the last deliberate start.
    """
    host_boot_id: str = ""
    """/proc/sys/kernel/random/boot_id when the machine was started."""
    unwind_reason: str = ""
    """Which reason the clean-up hooks are given; stored, so that a crash does not
    change it.
    """
    extensions: ExtensionState = ExtensionState()
    boot_seconds: Mapping[str, float] = Field(default_factory=dict)
    """The guest's own stamps of its last boot: stage -> seconds since its kernel
    started.
    """

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.spec.id


def utc_now() -> datetime:
    """Now, in UTC, whole microseconds."""
    return datetime.now(UTC)
