"""Steps of a start, or of a snapshot, as bars below each other, each where it began and as long as
it took.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from vmdriver.host.visible import visible
from vmdriver.model.checkpoint import SnapshotEntry
from vmdriver.model.timing import StartTiming, TimedStep

_NARROWEST, _WIDEST = 20, 100
_GUESTS = {"guest takes its files", "guest starts"}
_STANDING = {"freeze", "go on"}
"""In which a workload begins, and ceases, to stand still."""
_WAYS = {
    "relaunched": "booted again",
    "resumed": "resumed from its memory",
    "snapshot": "returned to a snapshot",
    "template": "forked from a template",
}
"""Kinds of starts that do not say by themselves what happened."""


def waterfall(steps: Sequence[TimedStep], width: int) -> list[str]:
    """A line each, of at most `width` characters where that leaves room for a bar: name,
    milliseconds, bar. Steps shorter than a character have a dot.
    """
    if not steps:
        return []
    names = [visible(step.name) for step in steps]
    widest = max(map(len, names))
    total = max(step.ended_ms for step in steps) or 1.0
    room = max(min(width - widest - 14, _WIDEST), _NARROWEST)
    lines = []
    for name, step in zip(names, steps, strict=True):
        took = step.ended_ms - step.begun_ms
        before = min(int(step.begun_ms / total * room), room - 1)
        length = min(round(took / total * room), room - before)
        bar = "█" * length or "·"
        lines.append(f"  {name.ljust(widest)} {took:8.1f} ms {' ' * before}{bar}")
    return lines


def shown(timing: StartTiming) -> str:
    """The whole start, for a terminal."""
    total = max((step.ended_ms for step in timing.steps), default=0.0)
    guest = sum(s.ended_ms - s.begun_ms for s in timing.steps if s.name in _GUESTS)
    whose = f", of which the guest {guest:.0f} ms" if guest else ""
    when = f"up at {timing.at:%Y-%m-%d %H:%M:%S} UTC"
    head = f"{way(timing)} in {total:.0f} ms{whose}, {when}"
    return "\n".join(
        [head, *waterfall(timing.steps, shutil.get_terminal_size().columns)]
    )


def taken(entry: SnapshotEntry) -> str:
    """How a snapshot of a running sandbox was taken; "" where that was not timed."""
    if not entry.steps:
        return ""
    total = max(step.ended_ms for step in entry.steps)
    what = "" if entry.memory else " of the disk alone"
    stood = stood_still_ms(entry)
    head = (
        f"snapshot {visible(entry.name)}{what} in {total:.0f} ms, of which the workload stood "
        f"still for {stood:.0f} ms, taken at {entry.created_at:%Y-%m-%d %H:%M:%S} UTC"
    )
    return "\n".join(
        [head, *waterfall(entry.steps, shutil.get_terminal_size().columns)]
    )


def stood_still_ms(entry: SnapshotEntry) -> float:
    """For how long the workload did, where that was timed."""
    still = [step for step in entry.steps if step.name in _STANDING]
    begun = min((step.begun_ms for step in still), default=0.0)
    return max((step.ended_ms for step in still), default=0.0) - begun


def way(timing: StartTiming) -> str:
    """How it came up. A machine that waited had its template's memory already."""
    loaded = any(step.name == "load" for step in timing.steps)
    if timing.kind == "template" and not loaded:
        return "taken from the warm pool"
    return _WAYS.get(timing.kind, visible(timing.kind))
