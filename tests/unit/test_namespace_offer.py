"""Whether a machine has the part `namespace` of its wall, by who begins its QEMU."""

from __future__ import annotations

import pytest

from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import Lack, Offer
from vmdriver.network.namespace_offer import NamespaceOffer


class Box:
    def __init__(self, *, there: bool) -> None:
        self.there = there

    async def offer(self, _plan: LaunchPlan | None) -> Offer:
        lack = Lack("box", "bwrap is missing", "install it")
        return Offer(("box",)) if self.there else Offer(lacks=(lack,))


@pytest.mark.parametrize(
    ("moved", "boxed"), [(False, False), (False, True), (True, True)]
)
async def test_it_is_had(moved: bool, boxed: bool) -> None:
    found = await NamespaceOffer(moved, Box(there=boxed)).offer(None)
    assert found == Offer(("namespace",))


async def test_a_daemons_qemu_without_a_box_stays_in_the_daemons_network() -> None:
    found = await NamespaceOffer(True, Box(there=False)).offer(None)
    assert found.parts == ()
    (lack,) = found.lacks
    assert lack.part == "namespace"
    assert "daemon" in lack.why
    assert "embed" in lack.resolution
