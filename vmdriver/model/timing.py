"""How long the steps of a sandbox's last start took: stored with its record."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from vmdriver.model.spec import Frozen


class TimedStep(Frozen):
    """One step, in milliseconds from the wish that the start began with. Steps may lie inside
    others, and beside them.
    """

    name: str
    begun_ms: float
    ended_ms: float


class StartTiming(Frozen):
    """The last start that came up, from the wish to the running workload."""

    kind: str
    """`booted`, or a RestoreKind: `relaunched`, `resumed`, `snapshot`, `template`."""
    at: datetime
    """When the machine was up."""
    steps: tuple[TimedStep, ...]
    """In the order in which they began."""


def with_guest(
    steps: tuple[TimedStep, ...], stamps: Mapping[str, float], name: str
) -> tuple[TimedStep, ...]:
    """These steps and, inside the one called `name`, the guest's own: `stamps` are seconds since
    its kernel started, which is taken to be when that step began. Each reaches to the next.
    """
    found = [step for step in steps if step.name == name]
    if not found:
        return steps
    begun, inside, earlier = found[-1].begun_ms, [], 0.0
    for stage, seconds in sorted(stamps.items(), key=lambda item: item[1]):
        inside.append(
            TimedStep(
                name=f"guest: {stage}",
                begun_ms=round(begun + earlier * 1e3, 1),
                ended_ms=round(begun + seconds * 1e3, 1),
            )
        )
        earlier = seconds
    return (*steps, *inside)
