"""Implements lifecycle.ports.network_guard.NetworkGuard: names are answered as long as a machine's
network is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vmdriver.errors import NetworkError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.network_guard import NetworkNews
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.guard.guard import NetworkGuard
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.names.service import NameService


@dataclass(frozen=True, kw_only=True)
class NamedNetworks:
    """What `guard` keeps has names."""

    guard: NetworkGuard
    names: NameService

    @classmethod
    def of(cls, network: HostNetwork, threads: Threads) -> NamedNetworks:
        """As a driver has it."""
        return cls(guard=NetworkGuard(network, threads), names=NameService())

    def open(self) -> None:
        """Begin to listen to the host. NetworkError."""
        self.guard.open()

    async def close(self) -> None:
        """Nothing is restored or answered any more; what there is stays."""
        try:
            await self.names.close()
        finally:
            await self.guard.close()

    async def keep(
        self, plan: NetworkPlan, mark: str, *, mend: bool = False, broken: str = ""
    ) -> None:
        try:
            await self.guard.keep(plan, mark, mend=mend, broken=broken)
        except NetworkError:
            await self.names.serve(plan)  # it is tried again, and may come to be whole
            raise
        await self.names.serve(plan)

    async def leave(self, tap: str) -> None:
        try:
            await self.names.leave(tap)
        finally:
            await self.guard.leave(tap)

    def keeps(self, tap: str) -> bool:
        return self.guard.keeps(tap)

    def why_broken(self, tap: str) -> str:
        return self.guard.why_broken(tap)

    def on_news(self, told: Callable[[NetworkNews], None]) -> None:
        self.guard.on_news(told)
