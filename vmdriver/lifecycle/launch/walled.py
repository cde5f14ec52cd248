"""Behind which wall a machine's network is. Pure."""

from __future__ import annotations

from typing import Any

from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.egress import EVERYTHING, EVERYTHING_IPV6
from vmdriver.model.plan import LaunchPlan


def walled(plan: LaunchPlan, settings: Settings) -> LaunchPlan:
    """The same machine with the network's wall of now, whatever it had before: also one that goes
    on from memory of an earlier driver's.
    """
    network = plan.network
    changes: dict[str, Any] = {
        "namespace": network.lease.tap if settings.namespaces else None,
        "moved": settings.namespaces and settings.moved_taps,
        "max_connections": settings.max_connections,
    }
    if network.ipv6 is not None and not settings.namespaces:
        why = "machines have no network namespaces of their own on this host"
        changes |= {"ipv6": None, "no_ipv6": why}
    six = network.ipv6 is not None and settings.namespaces
    everything = {EVERYTHING, EVERYTHING_IPV6} if six else {EVERYTHING}
    closed = (
        network.egress == "none"
        or network.egress_only == ()
        or everything.issubset(network.egress_deny)
    )
    if closed and not settings.dns_without_egress:
        changes["dns"] = ()
    network = network.model_copy(update=changes)
    return plan.model_copy(update={"network": network})
