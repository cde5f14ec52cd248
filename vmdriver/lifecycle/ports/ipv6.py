"""What the core needs of the host's network for machines with IPv6."""

from __future__ import annotations

from typing import Protocol

from vmdriver.model.ipv6 import WayToIpv6
from vmdriver.model.plan import NetworkPlan


class Ipv6Ways(Protocol):
    """Part of `Network`."""

    async def way_to_ipv6(self) -> WayToIpv6:
        """What the host has of it now. NetworkError."""

    async def give_ipv6(self, plan: NetworkPlan, mark: str) -> None:
        """A tap that is there without it, as of a machine that waited for its owner, has the
        plan's. NetworkError.
        """
