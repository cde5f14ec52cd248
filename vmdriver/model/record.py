"""What we know of one sandbox, durably: the wish, the phase, the plan and the last
failure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from vmdriver.model.checkpoint import MemoryRef, SnapshotEntry
from vmdriver.model.image import ImageConfig
from vmdriver.model.mistakes import first_mistake
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.plan import LaunchPlan, Lease
from vmdriver.model.spec import Frozen, SandboxSpec
from vmdriver.model.timing import StartTiming

SCHEMA = 1
"""Raised when an older release must not touch a record: it sets the sandbox aside."""
SCHEMA_MINOR = 3
"""Raised with every release that adds a field: an older one then keeps what it does not know,
and writes it back. An unknown field in a record that is no newer is damage.
"""
MAIN_PROCESS_EXITED = "MainProcessExited"
MACHINE_CRASHED = "MachineCrashed"
PROVISIONING_FAILED = "ProvisioningFailed"
RESTORE_FAILED = "RestoreFailed"


CONSOLE_FOLLOWS = "; the console ends with:"
"""Behind this, a message has the guest's output to its end: what must not be told leaves it out."""

NOT_SET_UP = "the guest could not be set up:"
NO_BARRIER = "the template's guest ended before its barrier:"
REFUSED_TO = "the guest refused to"
"""Behind each of these, the last with a verb and a colon, a message has a guest's own words."""

COMMAND_FOLLOWS = ", which is:"
"""Behind this, a message has an operator's command to its end, which may hold a secret."""


class Failure(Frozen):
    """Why a sandbox is not running although it was meant to."""

    reason: str
    message: str
    exit_code: int | None = None
    will_retry: bool = False
    """True: the machine is started again; the gateway must not see a terminal reason.
    """
    in_launch: bool = False
    """It ended before it had come up: does not count as a restart after a crash."""


class Change(Frozen):
    """What one extension changed of what was asked for. `key` is "" for single fields."""

    field: str
    key: str = ""
    value: Any
    extension: str


class ExtensionState(Frozen):
    """Which extensions take part in this sandbox's life; decided once, at create."""

    active: tuple[str, ...] = ()
    parameters: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    """By extension: what the request says to it."""
    changes: tuple[Change, ...] = ()
    accepted: bool = True
    """False: the create is not answered yet. After a crash it never was."""
    ready_told: bool = False
    """after_ready has been called for the present run."""
    returned: str = ""
    """The RestoreKind of the present run; "": the first boot."""


class SandboxRecord(Frozen):
    """One sandbox's record.json."""

    schema_version: Literal[1] = 1
    schema_minor: int = SCHEMA_MINOR
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
    launch_retries: int = 0
    """How many launches were cut off by the end of QEMU, since the machine was up last or
    started deliberately.
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

    layers: tuple[str, ...] = ()
    """The root disk's qcow2 layers, bottom first; the last one is written to."""
    inherited_layers: int = 0
    """How many of these, from the bottom, were made for another sandbox or a template."""
    base: str = ""
    """The raw disk below them, made from the image."""
    image_digest: str = ""
    """Of the image that the base was made from; resolved once, at the first launch."""
    image_config: ImageConfig = ImageConfig()
    """What that image says of itself."""
    memory: MemoryRef | None = None
    """What the machine goes on from when it is resumed."""
    mapped: str = ""
    """Directory of the checkpoint whose memory the running machine maps; "": it has booted."""
    snapshots: tuple[SnapshotEntry, ...] = ()
    secrets_digest: str = ""
    """sha256 over token and TLS files as the guest was given them last."""
    note: str = ""
    """What the user should know of the running machine, such as that its memory was lost."""
    last_restore: Mapping[str, float] = Field(default_factory=dict)
    """Seconds of each step of the last return from memory."""
    last_start: StartTiming | None = None
    """How long the steps of the last start that came up took."""
    reverting: str = ""
    """Name of the snapshot that the sandbox is being returned to."""
    reverting_volumes: bool = False
    """Its volumes go back with it."""
    cold: bool = False
    """The memory is to be dropped, whatever the sandbox is at."""
    network_broken: str = ""
    """Why the machine is held still: its network is not what was made for it. "": it is."""
    held_for_network: bool = False
    """It was paused for that reason, and by nobody else."""
    stop_anyway: bool = False
    """A suspension that cannot be is a stop instead: the gateway asked for a stop."""

    @field_validator("boot_seconds", mode="before")
    @classmethod
    def _numbers_only(cls, value: Any) -> Any:
        """A stamp that was no finite number was once stored, and JSON has only null for it."""
        if not isinstance(value, Mapping):
            return value
        return {name: seconds for name, seconds in value.items() if seconds is not None}

    @property
    def id(self) -> str:
        """The sandbox's id."""
        return self.spec.id


def parse_record(data: bytes) -> SandboxRecord:
    """A record as it was stored, by this release, an earlier, or a somewhat newer one.
    ValueError, with a text for people and nothing of the content in it.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - of the text, not of the caller
    major, minor = document.get("schema_version"), document.get("schema_minor")
    if isinstance(major, int) and major > SCHEMA:
        raise ValueError(f"a newer release wrote it (schema {major})")
    newer = isinstance(minor, int) and minor > SCHEMA_MINOR
    try:
        record = SandboxRecord.model_validate_json(
            data, extra="allow" if newer else "forbid"
        )
    except ValidationError as error:
        where, what = first_mistake(error)
        raise ValueError(f"{where}: {what}") from error
    return record.model_copy(
        update={"schema_minor": max(record.schema_minor, SCHEMA_MINOR)}
    )


def stored_form(record: SandboxRecord) -> bytes:
    """As it is stored, with what a newer release had written and this one does not know."""
    if record.schema_minor <= SCHEMA_MINOR:
        return record.model_dump_json().encode()
    document = record.model_dump(mode="json")
    _put_back(record, document)
    return json.dumps(document).encode()


def _put_back(value: Any, document: Any) -> None:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            _put_back(getattr(value, name), document[name])
        document.update(value.__pydantic_extra__ or {})
    elif isinstance(value, tuple | list):
        for inner, place in zip(value, document, strict=True):
            _put_back(inner, place)


def layers_of(record: SandboxRecord) -> set[str]:
    """Every qcow2 layer that this sandbox needs, its snapshots' among them, with the volumes that
    these have.
    """
    return set(record.layers).union(*(entry.files for entry in record.snapshots))


def utc_now() -> datetime:
    """Now, in UTC, whole microseconds."""
    return datetime.now(UTC)
