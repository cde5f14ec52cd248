"""Taps and tables in memory."""

from __future__ import annotations

from tests.fakes.world import World
from vmdriver.errors import NotOursError
from vmdriver.lifecycle.ports.host import (
    Found,
    Taken,
)
from vmdriver.model.ids import is_anothers, parse_mark
from vmdriver.model.ipv6 import WayToIpv6
from vmdriver.model.plan import NetworkPlan


class FakeNetwork:
    def __init__(self, world: World, instance: str) -> None:
        self._world, self._instance = world, instance

    async def make_tap(self, plan: NetworkPlan, mark: str) -> None:
        tap, world = plan.lease.tap, self._world
        world.act(f"make tap {tap}")
        world.taps[tap] = mark
        if plan.namespace is not None:
            world.act(f"make namespace {tap}")
            world.ways_out.discard(tap)
            world.namespaces[plan.namespace] = mark
        world.limits[tap] = (plan.mbit_s,)
        if plan.ipv6 is not None:
            world.ipv6[tap] = plan.ipv6.guest_ip

    async def reassign_tap(self, tap: str, mark: str) -> None:
        if tap in self._world.namespaces:
            self._world.act(f"mark namespace {tap}")
            self._world.namespaces[tap] = mark
        self._world.act(f"mark tap {tap}")
        assert tap in self._world.taps
        self._world.taps[tap] = mark

    async def limit_rate(self, plan: NetworkPlan) -> None:
        self._world.act(f"limit rate {plan.lease.tap}")
        assert plan.lease.tap in self._world.taps
        self._world.limits[plan.lease.tap] = (plan.mbit_s,)

    async def remove_tap(self, tap: str, mark: str, *, made: bool = False) -> None:
        self._world.act(f"remove tap {tap}")
        if is_anothers(self._world.taps.get(tap), mark, made=made):
            raise NotOursError(f"interface {tap} is somebody else's, and is left alone")
        self._world.taps.pop(tap, None)
        self._world.limits.pop(tap, None)
        self._world.ipv6.pop(tap, None)
        if tap in self._world.namespaces:
            self._world.act(f"remove namespace {tap}")
            if is_anothers(self._world.namespaces[tap], mark, made=made):
                raise NotOursError(f"namespace {tap} is somebody else's")
            del self._world.namespaces[tap]
            self._world.ways_out.discard(tap)

    async def reset_connections(self, guest_ip: str) -> None:
        self._world.act(f"reset connections with {guest_ip}")

    async def load_rules(self, plan: NetworkPlan, mark: str) -> None:
        self._world.act(f"load rules {plan.lease.tap}")
        within = plan.namespace
        assert within is None or within in self._world.namespaces, "rules for nowhere"
        self._world.tables[plan.lease.tap] = mark
        if within is not None:
            self._world.act(f"connect {within}")
            self._world.ways_out.add(within)

    async def remove_rules(self, tap: str) -> None:
        self._world.act(f"remove rules {tap}")
        self._world.tables.pop(tap, None)

    async def taken(self) -> Taken:
        return Taken(frozenset({"lo", *self._world.taps}))

    async def own_networks(self) -> tuple[str, ...]:
        return ("192.0.2.0/24",)

    async def give_ipv6(self, plan: NetworkPlan, mark: str) -> None:
        tap = plan.lease.tap
        self._world.act(f"give IPv6 to {tap}")
        assert self._world.taps[tap] == mark
        assert plan.ipv6 is not None
        self._world.ipv6[tap] = plan.ipv6.guest_ip

    async def way_to_ipv6(self) -> WayToIpv6:
        return self._world.way_to_ipv6

    async def resolve(self, host: str) -> str:
        return "198.51.100.7"

    async def marked(self) -> list[Found]:
        both = (
            ("tap", self._world.taps),
            ("namespace", self._world.namespaces),
            ("firewall", self._world.tables),
        )
        found = [
            Found(kind, n, parse_mark(m, self._instance) or "")
            for kind, all_ in both
            for n, m in all_.items()
        ]
        return [f for f in found if f.sandbox_id]
