"""What a composed driver shows of itself, beside what its extensions are called for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmdriver.telemetry.seen import WATCHERS, Value
from vmdriver.telemetry.shown import Shown

CONNECTED = Shown(
    "vmdriver.composed.base.connected",
    "{base}",
    "1: a composed driver follows its base; 0: that is away",
)
BASE_SANDBOXES = Shown(
    "vmdriver.composed.base.sandboxes", "{sandbox}", "that the base has told it of"
)
SANDBOXES = Shown(
    "vmdriver.composed.sandboxes",
    "{sandbox}",
    "that extensions take part in: creating, present, deleting, gone (something is still held)",
    labels=("stage",),
)
TROUBLED = Shown(
    "vmdriver.composed.sandboxes.troubled",
    "{sandbox}",
    "of which something cannot be given back; that is tried again",
)
HELD = Shown(
    "vmdriver.composed.held",
    "{hold}",
    "what extensions hold for sandboxes",
    labels=("extension",),
)
CALLS = Shown(
    "vmdriver.composed.call.duration",
    "s",
    "calls of a composed driver, with those of its extensions and of the base: ok, refused, "
    "base refused, failed, cancelled",
    "histogram",
    ("method", "outcome"),
)
SEEN = (CONNECTED, BASE_SANDBOXES, SANDBOXES, TROUBLED, HELD)


@dataclass(frozen=True)
class Look:
    """One, at a composed driver."""

    connected: bool
    base_sandboxes: int
    stages: Mapping[str, int]
    troubled: int
    held: Mapping[str, int]
    """By extension."""
    watchers: int


def of_composed(look: Look) -> list[Value]:
    """As numbers."""
    alone = {
        CONNECTED: int(look.connected),
        BASE_SANDBOXES: look.base_sandboxes,
        TROUBLED: look.troubled,
        WATCHERS: look.watchers,
    }
    return [
        *(Value(shown, number, {}) for shown, number in alone.items()),
        *(Value(SANDBOXES, n, {"stage": stage}) for stage, n in look.stages.items()),
        *(Value(HELD, n, {"extension": name}) for name, n in look.held.items()),
    ]
