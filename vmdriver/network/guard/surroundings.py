"""What the host's own network namespace has of addresses and routes, without what is ours."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmdriver.errors import ConfigError
from vmdriver.host.threads import alone
from vmdriver.lifecycle.launch.environment import INNER_SANDBOX_NETWORK
from vmdriver.model.egress import Network, Version, version_of, within
from vmdriver.model.ipv6 import WayToIpv6
from vmdriver.network import rtnetlink
from vmdriver.network.netlink import translated

_MAIN_TABLE, _LOCAL_TABLE = 254, 255
_FAMILIES: Mapping[Version, int] = {4: socket.AF_INET, 6: socket.AF_INET6}
_SETTINGS = Path("/proc/sys/net/ipv6/conf")
_FAR_AWAY = "2001:503:ba3e::2:30"
"""One of the root name servers (a.root-servers.net): an address that is somewhere else."""
_MARKED = "vmdriver/"
"""What aliases of machines' links begin with."""


def _links_of_machines(host: socket.socket) -> set[int]:
    found = rtnetlink.links(host)
    return {link.index for link in found if (link.alias or "").startswith(_MARKED)}


async def connected_networks(version: Version = 4) -> list[Network]:
    """On-link and routed destinations of the main table, without the default
    route and our links'. NetworkError.
    """
    with translated("list routes"):
        found = await alone("look", _reached, _MAIN_TABLE, version, False)
    return [n for n in found if version == 4 or not _of_one_link(n)]


def _reached(table: int, version: Version, machines: bool) -> list[Network]:
    """Destinations of that table; of the links of any driver's machines too, if `machines`."""
    with rtnetlink.opened() as host:
        ours = set() if machines else _links_of_machines(host)
        found = rtnetlink.destinations(host, table, _FAMILIES[version])
    return [network for network, link in found if link not in ours]


async def own_addresses(
    pools: Sequence[str], *, ipv6: bool = False, of_machines: bool = True
) -> tuple[str, ...]:
    """What the host itself is reached at, broadcasts among it, as networks; of `ipv6` too. Without
    those in the pools, its loopback and those that are of one link alone, which are denied to
    everybody anyway. Not `of_machines`: without those of links of any driver's machines.
    NetworkError.
    """
    own: list[str] = []
    versions: tuple[Version, ...] = (4, 6) if ipv6 else (4,)
    for version in versions:
        with translated("list addresses"):
            found = await alone("look", _reached, _LOCAL_TABLE, version, of_machines)
        # Of IPv4 they are in one network; of IPv6 every link has an address.
        own += [
            str(one)
            for one in sorted(set(found), key=_in_order)
            if not (one.is_loopback or (version == 6 and _of_one_link(one)))
            and not within(str(one), pools)
        ]
    return tuple(own)


def _in_order(network: Network) -> tuple[int, int]:
    return int(network.network_address), network.prefixlen


def _of_one_link(network: Network) -> bool:
    return network.is_link_local or network.is_multicast


async def check_pool(pool: str) -> None:
    """Refuse an address pool that overlaps what is in use. ConfigError, NetworkError."""
    version, own = version_of(pool), ipaddress.ip_network(pool)
    taken: list[tuple[Network, str]] = []
    if version == 4:
        why = "which the supervisor uses inside the guest"
        taken.append((INNER_SANDBOX_NETWORK, why))
    taken += [
        (network, "to which this host has a route")
        for network in await connected_networks(version)
    ]
    setting = "address_pool" if version == 4 else "address_pool_ipv6"
    for network, why in taken:
        if network.version == own.version and network.overlaps(own):
            raise ConfigError(
                f"{setting} {pool} overlaps {network}, {why}",
                resolution=f"choose another {setting}",
            )


async def way_to_ipv6() -> WayToIpv6:
    """Whether the host has IPv6 that it can share. NetworkError."""
    with translated("look for IPv6"):
        lack = await alone("look", lack_of_ipv6)
    if lack:
        return WayToIpv6(lack)
    networks = await connected_networks(6)
    return WayToIpv6(networks=tuple(sorted({str(network) for network in networks})))


def lack_of_ipv6() -> str:
    """Why this host has no IPv6 that it can share, and what to do about it; "" where it has.
    Blocking. OSError.
    """
    if not _reaches_ipv6():
        return "this host itself has no way to IPv6 networks (no address, or no default route)"
    needed = by_advertisements()
    if needed:
        first = needed[0]
        return (
            f"this host has its IPv6 from router advertisements on {', '.join(needed)}, and Linux "
            "takes none any more once it forwards: "
            f"sysctl -w net.ipv6.conf.{first}.accept_ra=2 has it take them all the same"
        )
    return ""


def _reaches_ipv6() -> bool:
    """By its routes and addresses; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as asked:
            asked.connect((_FAR_AWAY, 53))
    except OSError:
        return False
    return True


def by_advertisements() -> list[str]:
    """Names of the host's links whose routes or addresses routers advertise to the kernel, and that
    would take no more of that if this host were to forward IPv6. Blocking. OSError.
    """
    if _setting("all", "forwarding") != "0":
        return []
    with rtnetlink.opened() as host:
        by_routers = rtnetlink.links_by_routers(host)
        found = rtnetlink.addresses_ipv6(host)
        by_routers |= {link for _, link, stays in found if not stays}
        names = {link.index: link.name for link in rtnetlink.links(host)}
    known = sorted(names[index] for index in by_routers if index in names)
    return [name for name in known if _setting(name, "accept_ra") == "1"]


def _setting(link: str, name: str) -> str:
    try:
        return (_SETTINGS / link / name).read_text().strip()
    except FileNotFoundError:  # a kernel without IPv6, or a link that has just gone
        return "0"
