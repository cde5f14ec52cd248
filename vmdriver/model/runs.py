"""Why a run of a machine ended, and as what one returns: both are stored."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why after_launch_failed is called."""

    BEFORE_LAUNCH_HOOK_FAILED = "BeforeLaunchHookFailed"
    GUEST_PREPARE_FAILED = "GuestPrepareFailed"
    LAUNCHER_SPAWN_FAILED = "LauncherSpawnFailed"
    PROCESS_EXITED = "ProcessExited"
    STOPPED = "Stopped"
    SUSPENDED = "Suspended"
    """The machine is down, but its memory is kept: before_restore follows some day."""


class RestoreKind(StrEnum):
    """Which return from persisted state this is."""

    ADOPTED = "adopted"
    """The machine ran on while no driver did."""
    RELAUNCHED = "relaunched"
    """A cold boot from the kept disk."""
    RESUMED = "resumed"
    """From its memory, as if nothing had happened."""
    SNAPSHOT = "snapshot"
    """Back to a named snapshot: memory and disk of that moment, or its disk only."""
    TEMPLATE = "template"
    """A new sandbox whose machine goes on from a template's memory instead of booting."""
