"""The rules of a machine (rules/walled_rules.py) in sentences, in the order in which they decide:
the first that a destination is in does. Pure. Whether the kernel has them so, replica.py tries.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from vmdriver.model.plan import NetworkPlan
from vmdriver.network.rules.destinations import (
    ALWAYS_DENIED,
    ALWAYS_DENIED_IPV6,
    PRIVATE,
    PRIVATE_IPV6,
)

Protocol = Literal["tcp", "udp"]
_BOTH: tuple[Protocol, ...] = ("tcp", "udp")
_NAMES = 53
ANYWHERE, ANYWHERE_IPV6 = "0.0.0.0/0", "::/0"


@dataclass(frozen=True)
class Destination:
    """One that a guest may try."""

    address: str
    port: int
    protocol: Protocol = "tcp"

    @property
    def place(self) -> str:
        """Without the protocol."""
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{address}:{self.port}"

    def __str__(self) -> str:
        return f"{self.place}/{self.protocol}"


@dataclass(frozen=True)
class Rule:
    """What becomes of whatever goes to these networks, and which setting says so."""

    reached: bool
    networks: tuple[str, ...]
    sentence: str
    setting: str
    """"": nobody's: it is always so."""
    protocols: tuple[Protocol, ...] = _BOTH
    ports: tuple[int, ...] = ()
    """Empty: all."""
    others: bool = False
    """It is about all networks but these."""

    def decides(self, to: Destination) -> bool:
        """Whether it is about that one."""
        address = ipaddress.ip_address(to.address)
        return (
            to.protocol in self.protocols
            and (not self.ports or to.port in self.ports)
            and self._names(address) is not self.others
        )

    def _names(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in ipaddress.ip_network(n) for n in self.networks)


def rules(plan: NetworkPlan, host: Sequence[str]) -> tuple[Rule, ...]:
    """All of them; the last one is about everything. `host`: the host's own addresses, as networks,
    of this moment.
    """
    return (*_of_the_host(plan, tuple(host)), *_without_ipv6(plan), *_outwards(plan))


def deciding(known: Sequence[Rule], to: Destination) -> int:
    """Which of them decides: its place."""
    return next(place for place, rule in enumerate(known) if rule.decides(to))


def _without_ipv6(plan: NetworkPlan) -> Iterator[Rule]:
    if plan.ipv6 is None:
        why = f": {plan.no_ipv6}" if plan.no_ipv6 else ""
        text = f"it has no IPv6{why}"
        yield Rule(False, (ANYWHERE_IPV6,), text, "egress_ipv6")


def _of_the_host(plan: NetworkPlan, host: tuple[str, ...]) -> Iterator[Rule]:
    alias = (plan.host_address,)
    if plan.asks_host:
        text = "questions for names are answered by the driver, which asks the host's own resolver"
        yield Rule(True, alias, text, "dns", ports=(_NAMES,))
    if plan.host_access == "all":
        text = "every TCP port of the host's loopback"
        yield Rule(True, alias, text, "host_access", ("tcp",))
    elif plan.host_ports:
        named = isinstance(plan.host_access, tuple)
        text = f"{'these ports' if named else 'the gateway'} on the host's loopback"
        setting = "host_access" if named else "openshell_endpoint"
        yield Rule(True, alias, text, setting, ("tcp",), plan.host_ports)
    yield Rule(
        False, alias, "nothing else of the host's loopback is reached", "host_access"
    )
    if plan.gateway_address is not None:
        where, text = (plan.gateway_address,), "the gateway"
        port = (plan.gateway_port,)
        yield Rule(True, where, text, "openshell_endpoint", ("tcp",), port)
    if host:
        text = "the host itself is not reached at its own addresses"
        yield Rule(False, host, text, "")


def _outwards(plan: NetworkPlan) -> Iterator[Rule]:
    if plan.servers_elsewhere:
        text = "name servers"
        yield Rule(True, plan.servers_elsewhere, text, "dns", ports=(_NAMES,))
    text = "no other sandbox is reached"
    pools, own = _of_the_host_too(plan)
    six = plan.ipv6 is not None
    yield Rule(False, pools, text, "")
    text = (
        "link-local addresses, metadata services of clouds, loopback, multicast and reserved "
        "networks are never reached"
    )
    if six:
        text += ", nor IPv4 by way of IPv6"
    more = ALWAYS_DENIED_IPV6 if six else ()
    yield Rule(False, (*ALWAYS_DENIED, *more), text, "")
    yield from _by_lists(plan)
    if plan.egress == "private-denied":
        text = "private networks are not reached"
        near = (*PRIVATE, *PRIVATE_IPV6) if six else PRIVATE
        yield Rule(False, near, text, "egress")
        if own:
            text = "networks that this host has a route to are private too"
            yield Rule(False, own, text, "egress")
    reached = plan.egress != "none"
    text = "everything else is reached" if reached else "nothing else is reached"
    everything = (ANYWHERE, ANYWHERE_IPV6) if six else (ANYWHERE,)
    yield Rule(reached, everything, text, "egress")


def _of_the_host_too(plan: NetworkPlan) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The sandboxes' own networks, and others that this host has a route to."""
    six = plan.ipv6
    if six is None:
        return (plan.pool,), plan.denied_networks
    return (plan.pool, six.pool), (*plan.denied_networks, *six.denied_networks)


def _by_lists(plan: NetworkPlan) -> Iterator[Rule]:
    if plan.egress_deny:
        text = "networks that are named are not reached"
        yield Rule(False, plan.egress_deny, text, "egress_deny")
    if plan.egress_only is not None:
        text = "the request wants no other networks"
        asked = "driver_config.egress_allow"
        yield Rule(False, plan.egress_only, text, asked, others=True)
    if plan.egress_allow:
        text = "networks that are named are reached"
        yield Rule(True, plan.egress_allow, text, "egress_allow")
