"""One look at a whole driver, for people who watch it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from vmdriver.model.condition import PlatformEvent
from vmdriver.model.usage import Usage


@dataclass(frozen=True)
class SeenSandbox:
    """A sandbox, and what its machine uses; `usage` is None where there is no machine."""

    id: str
    name: str
    workspace: str
    phase: str
    """The Phase's name; "unreadable" where its record cannot be read."""
    intent: str
    reason: str
    """Of its condition, as `message` and `since` are."""
    message: str
    since: datetime
    created: datetime
    usage: Usage | None = None
    stored: int = 0
    """Bytes on disk of the layers that are its own."""


@dataclass(frozen=True)
class SeenTemplate:
    """A template that can be used, and how many machines of the warm pool wait on it."""

    key: str
    image_digest: str
    vcpus: int
    memory_mib: int
    stored: int
    waiting: int


@dataclass(frozen=True)
class SeenEvent:
    """What has happened to a sandbox."""

    sandbox_id: str
    event: PlatformEvent


@dataclass(frozen=True)
class Totals:
    """Of all of them, in bytes where no other unit is named; a limit of 0 is none."""

    committed: int = 0
    memory_limit: int = 0
    sandbox_limit: int = 0
    disk_free: int = 0
    addresses_left: int = 0


@dataclass(frozen=True)
class Picture:
    """`used_at`: seconds of a clock that only runs, at which `usage` was looked at, everybody's at
    once. Two pictures may show the same look.
    """

    at: datetime
    version: str
    used_at: float = 0.0
    sandboxes: tuple[SeenSandbox, ...] = ()
    """By name, then id."""
    templates: tuple[SeenTemplate, ...] = ()
    events: tuple[SeenEvent, ...] = ()
    """The last ones, oldest first."""
    totals: Totals = field(default_factory=Totals)
