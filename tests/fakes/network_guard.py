"""Somebody who sees to it that networks stay as they were made; tests change them."""

from __future__ import annotations

from collections.abc import Callable

from tests.fakes.world import World
from vmdriver.errors import DriverError, NetworkError
from vmdriver.lifecycle.ports.host import Network
from vmdriver.lifecycle.ports.network_guard import NetworkNews
from vmdriver.model.plan import NetworkPlan


class FakeNetworkGuard:
    """Of one process. What cannot be restored is the world's: the next driver finds it so too."""

    def __init__(self, world: World, network: Network) -> None:
        self._world, self._network = world, network
        self._kept: dict[str, tuple[NetworkPlan, str]] = {}
        self._broken: dict[str, str] = {}
        self._told: Callable[[NetworkNews], None] = lambda _: None

    async def keep(
        self, plan: NetworkPlan, mark: str, *, mend: bool = False, broken: str = ""
    ) -> None:
        tap = plan.lease.tap
        if mend and plan.namespace not in {None, *self._world.namespaces}:
            raise NetworkError("its namespace is gone: only a new start makes one")
        self._kept[tap] = (plan, mark)
        try:
            await self._load(tap)
        except DriverError as error:
            self._broken[tap] = error.text()
            raise

    async def _load(self, tap: str) -> None:
        if tap in self._world.beyond_repair:
            raise NetworkError("its rules cannot be loaded")
        await self._network.load_rules(*self._kept[tap])
        self._broken.pop(tap, None)

    async def leave(self, tap: str) -> None:
        self._kept.pop(tap, None)
        self._broken.pop(tap, None)

    def keeps(self, tap: str) -> bool:
        return tap in self._kept

    def why_broken(self, tap: str) -> str:
        return self._broken.get(tap, "")

    def on_news(self, told: Callable[[NetworkNews], None]) -> None:
        self._told = told

    async def look(self, tap: str) -> None:
        """What the real one does when netlink wakes it."""
        if tap not in self._kept:
            return
        known = tap in self._broken
        try:
            await self._load(tap)
        except DriverError as error:
            self._broken[tap] = error.text()
            if not known:
                self._told(NetworkNews(tap, error.text(), restored=False))
        else:
            self._told(NetworkNews(tap, "its table was gone", restored=True))

    async def flushed(self, *, beyond_repair: bool = False) -> None:
        """Somebody empties every table; `beyond_repair`: and loading them anew fails."""
        self._world.tables.clear()
        self._world.beyond_repair = set(self._kept) if beyond_repair else set()
        for tap in list(self._kept):
            await self.look(tap)
