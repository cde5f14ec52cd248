"""Networks beside `egress`: the operator's lists, and what a request asks for less. Pure.

Nothing that a request says widens what the operator allows: its own list of allowed networks only
takes away what is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmdriver.errors import InvalidRequest
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.egress import MOST, networks_of
from vmdriver.model.ipv6 import Ipv6, WayToIpv6, block
from vmdriver.model.plan import LaunchPlan, NetworkPlan
from vmdriver.model.spec import SandboxSpec

_ALLOW, _DENY = "egress_allow", "egress_deny"
_MEANINGS = {
    _ALLOW: "of what the operator's rules allow, only these networks are reached; []: none",
    _DENY: "networks that are not reached either",
}
EGRESS_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    key: {
        "type": "array",
        "maxItems": MOST,
        "items": {"type": "string", "format": "IPv4 network, or IPv6 with egress_ipv6"},
        "description": meaning,
    }
    for key, meaning in _MEANINGS.items()
}
"""JSON Schema of each in template.driver_config."""


def check_egress(config: Mapping[str, Any], *, ipv6: bool = False) -> None:
    """InvalidRequest, with the key's path, for what is no list of networks, or names some of IPv6
    where sandboxes have none.
    """
    for key in _MEANINGS:
        if key not in config:
            continue
        value, path = config[key], f"template.driver_config.{key}"
        if not isinstance(value, list | tuple) or len(value) > MOST:
            raise InvalidRequest(path, f"must be a list of at most {MOST} networks")
        try:
            networks_of(value, ipv6=ipv6)
        except ValueError as error:
            raise InvalidRequest(path, str(error)) from error


def reaching(plan: LaunchPlan, spec: SandboxSpec, settings: Settings) -> LaunchPlan:
    """The same machine with `egress` and the lists of now, whatever it had before. One that has
    IPv6 loses it where the operator wants none any more; one without gets none: its guest knows
    of no address.
    """
    config = spec.driver_config
    deny = networks_of([*settings.egress_deny, *config.get(_DENY, ())], ipv6=True)
    only = networks_of(config[_ALLOW], ipv6=True) if _ALLOW in config else None
    network = plan.network.model_copy(
        update={
            "egress": settings.egress,
            "egress_allow": settings.egress_allow,
            "egress_deny": deny,
            "egress_only": only,
            "ipv6": plan.network.ipv6 if settings.egress_ipv6 else None,
            "no_ipv6": plan.network.no_ipv6 if settings.egress_ipv6 else "",
        }
    )
    return plan.model_copy(update={"network": network})


def addressed(
    index: int, way: WayToIpv6 | None, settings: Settings
) -> tuple[Ipv6 | None, str]:
    """The IPv6 of a new machine with the block of that number, and why it has none although the
    operator wants it. `way`: the host's, None where it was not asked.
    """
    if not settings.egress_ipv6 or way is None:
        return None, ""
    if way.lack:
        return None, way.lack
    return block(settings.address_pool_ipv6, index, way.networks), ""


def readdressed(network: NetworkPlan) -> NetworkPlan:
    """The same network with the IPv6 of its lease, whose it was before."""
    six = network.ipv6
    if six is None:
        return network
    own = block(six.pool, network.lease.index, six.denied_networks)
    return network.model_copy(update={"ipv6": own})
