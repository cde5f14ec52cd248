"""Whether a machine can have a network namespace of its own."""

from __future__ import annotations

from dataclasses import dataclass

from vmdriver.lifecycle.ports.host import WallSource
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import Lack, Offer


@dataclass(frozen=True)
class NamespaceOffer:
    """Implements lifecycle.ports.host.WallSource. `moved`: QEMU is begun by a libvirt daemon, in
    the daemon's namespace. Its tap is in the machine's; QEMU itself is apart only in its `box`.
    """

    moved: bool
    box: WallSource

    async def offer(self, plan: LaunchPlan | None) -> Offer:
        """The part `namespace`, or why it cannot be had."""
        if not self.moved or "box" in (await self.box.offer(plan)).parts:
            return Offer(("namespace",))
        why = (
            "a libvirt daemon begins QEMU in its own network namespace, and without a box it "
            "stays there; the machine's tap alone is behind its rules"
        )
        way_out = 'use connection = "embed", or have what the box needs'
        return Offer(lacks=(Lack("namespace", why, way_out),))
