"""What the host's own network namespace has of addresses and routes, without what is ours."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from vmdriver.errors import ConfigError
from vmdriver.lifecycle.launch.environment import INNER_SANDBOX_NETWORK
from vmdriver.network.netlink import attribute, netlink, translated

_MAIN_TABLE, _LOCAL_TABLE = 254, 255


async def _links_of_machines(host: Any) -> set[int]:
    return {
        link["index"]
        async for link in await host.link("dump")
        if (attribute(link, "IFLA_IFALIAS") or "").startswith("vmdriver/")
    }


async def connected_networks() -> list[ipaddress.IPv4Network]:
    """On-link and routed IPv4 destinations of the main table, without the default
    route and our links'. NetworkError.
    """
    with translated("list routes"):
        async with netlink() as host:
            ours = await _links_of_machines(host)
            networks = []
            async for route in await host.route(
                "dump", family=socket.AF_INET, table=_MAIN_TABLE
            ):
                destination = attribute(route, "RTA_DST")
                if destination is not None and attribute(route, "RTA_OIF") not in ours:
                    networks.append(
                        ipaddress.IPv4Network(f"{destination}/{route['dst_len']}")
                    )
    return networks


async def own_addresses(
    pool: ipaddress.IPv4Network, *, of_machines: bool = True
) -> tuple[str, ...]:
    """What the host itself is reached at, broadcasts among it, as networks; without those in `pool`
    and its loopback, which are denied to everybody anyway. Not `of_machines`: without those of
    links of any driver's machines. NetworkError.
    """
    found = set()
    with translated("list addresses"):
        async with netlink() as host:
            machines = set() if of_machines else await _links_of_machines(host)
            async for route in await host.route(
                "dump", family=socket.AF_INET, table=_LOCAL_TABLE
            ):
                destination = attribute(route, "RTA_DST")
                link = attribute(route, "RTA_OIF")
                if destination is not None and link not in machines:
                    found.add(
                        ipaddress.IPv4Network(f"{destination}/{route['dst_len']}")
                    )
    return tuple(
        str(network)
        for network in sorted(found)
        if not network.is_loopback and not network.subnet_of(pool)
    )


async def check_pool(pool: ipaddress.IPv4Network) -> None:
    """Refuse an address pool that overlaps what is in use. ConfigError, NetworkError."""
    taken = [(INNER_SANDBOX_NETWORK, "which the supervisor uses inside the guest")]
    taken += [
        (network, "to which this host has a route")
        for network in await connected_networks()
    ]
    for network, why in taken:
        if network.overlaps(pool):
            raise ConfigError(
                f"address_pool {pool} overlaps {network}, {why}",
                resolution="choose another address_pool",
            )
