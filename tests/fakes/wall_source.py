"""A host that can give some parts of the wall, and not others."""

from __future__ import annotations

from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import Lack, Offer, WallPart


class FakeWallSource:
    """`offered`: what every machine gets from now on."""

    def __init__(self) -> None:
        self.restore()

    def restore(self) -> None:
        """All of it can be had from now on."""
        self.offered = Offer(("box", "seccomp", "limits"))

    def lack(self, part: WallPart, why: str) -> None:
        """From now on it cannot be had."""
        parts = tuple(p for p in self.offered.parts if p != part)
        self.offered = Offer(parts, (Lack(part, why, "get another host"),))

    async def offer(self, plan: LaunchPlan | None) -> Offer:
        return self.offered
