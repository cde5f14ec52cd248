"""Decides which parts of the wall a machine has, and refuses to start one that would lack any."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from vmdriver.errors import Refused
from vmdriver.lifecycle.ports.host import WallSource
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import ISOLATION_UNAVAILABLE, Lack, Offer, WallPart, joined

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wall:
    """`sources`: who makes parts. `isolation` is the operator's: with "strict" nothing starts
    without a part that cannot be had, with "available" it does, and its plan shows it.
    """

    sources: Sequence[WallSource]
    isolation: Literal["strict", "available"]
    _told: set[str] = field(default_factory=set, init=False)

    async def around(self, plan: LaunchPlan) -> LaunchPlan:
        """The plan of this run, with the parts that will be in force in it. Refused under "strict"
        if one is lacking; HostError when that cannot be found out.
        """
        offers = [await source.offer(plan) for source in self.sources]
        found = joined([*offers, _of_itself(plan)])
        if found.lacks and self.isolation == "strict":
            raise _refused(found.lacks)
        for lack in found.lacks:
            if lack.part not in self._told:
                self._told.add(lack.part)
                _log.warning(
                    'machines start without %s (isolation is "available"): %s',
                    lack.part,
                    lack.why,
                )
        return plan.model_copy(update={"wall": found.parts})


def _of_itself(plan: LaunchPlan) -> Offer:
    """What is in the plan because it was decided elsewhere."""
    parts: list[WallPart] = []
    if plan.user is not None:
        parts.append("uid")
    if plan.network.namespace is not None and not plan.network.moved:
        parts.append("namespace")
    return Offer(tuple(parts))


def _refused(lacks: Sequence[Lack]) -> Refused:
    first = lacks[0]
    return Refused(
        f"{first.part}: this host cannot give the machine this part of its wall: {first.why}",
        detail="; ".join(f"{lack.part}: {lack.why}" for lack in lacks[1:]),
        reason=ISOLATION_UNAVAILABLE,
        resolution=f'{first.resolution}; or set isolation = "available" to do without',
    )
