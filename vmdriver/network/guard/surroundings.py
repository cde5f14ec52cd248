"""What the host's own network namespace has of addresses and routes, without what is ours."""

from __future__ import annotations

import ipaddress
import socket

from vmdriver.errors import ConfigError
from vmdriver.host.threads import alone
from vmdriver.lifecycle.launch.environment import INNER_SANDBOX_NETWORK
from vmdriver.network import rtnetlink
from vmdriver.network.netlink import translated

_MAIN_TABLE, _LOCAL_TABLE = 254, 255
_MARKED = "vmdriver/"
"""What aliases of machines' links begin with."""


def _links_of_machines(host: socket.socket) -> set[int]:
    found = rtnetlink.links(host)
    return {link.index for link in found if (link.alias or "").startswith(_MARKED)}


async def connected_networks() -> list[ipaddress.IPv4Network]:
    """On-link and routed IPv4 destinations of the main table, without the default
    route and our links'. NetworkError.
    """
    with translated("list routes"):
        return await alone("look", _reached, _MAIN_TABLE, False)


def _reached(table: int, machines: bool) -> list[ipaddress.IPv4Network]:
    """Destinations of that table; of the links of any driver's machines too, if `machines`."""
    with rtnetlink.opened() as host:
        ours = set() if machines else _links_of_machines(host)
        found = rtnetlink.destinations(host, table)
    return [network for network, link in found if link not in ours]


async def own_addresses(
    pool: ipaddress.IPv4Network, *, of_machines: bool = True
) -> tuple[str, ...]:
    """What the host itself is reached at, broadcasts among it, as networks; without those in `pool`
    and its loopback, which are denied to everybody anyway. Not `of_machines`: without those of
    links of any driver's machines. NetworkError.
    """
    with translated("list addresses"):
        found = set(await alone("look", _reached, _LOCAL_TABLE, of_machines))
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
