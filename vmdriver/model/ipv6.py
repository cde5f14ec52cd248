"""A machine's IPv6 addresses. Pure.

They are numbered as its IPv4 ones are: four to a block, of a network that a driver has to itself.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass

from vmdriver.model.spec import Frozen

LONGEST_PREFIX = 96
"""Of a pool: it has blocks for every one that an IPv4 pool can have."""


@dataclass(frozen=True)
class WayToIpv6:
    """The host's own, which machines may share."""

    lack: str = ""
    """Why they cannot, and what to do about it; "" where they can."""
    networks: tuple[str, ...] = ()
    """IPv6 networks that the host is in, or has other routes to than its default one."""


class Ipv6(Frozen):
    """A machine's IPv6: all of it or none. Nothing of it is asked for or learnt on the link."""

    pool: str
    """The whole pool, so that sandboxes can be kept from each other."""
    host_ip: str
    """The guest's way out, which is in the machine's namespace."""
    guest_ip: str
    uplink_ip: str
    """What the host is, seen from there."""
    denied_networks: tuple[str, ...] = ()
    """The host's own networks, denied by egress "private-denied"."""


def private_pool(instance: str) -> str:
    """A driver's own network of unique local addresses (RFC 4193): of another instance it is
    another one.

    >>> private_pool("vmdriver")
    'fd6d:17c1:e1::/64'
    """
    number = hashlib.sha256(f"vmdriver/{instance}".encode()).digest()[:5]
    return str(ipaddress.IPv6Network((b"\xfd" + number + bytes(10), 64)))


def block(pool: str, index: int, denied_networks: tuple[str, ...]) -> Ipv6:
    """That of the IPv4 block with that number.

    >>> block("fd00:1::/64", 2, ()).guest_ip
    'fd00:1::a'
    """
    base = int(ipaddress.IPv6Network(pool).network_address) + 4 * index
    host, guest, uplink = (str(ipaddress.IPv6Address(base + n)) for n in (1, 2, 3))
    return Ipv6(
        pool=pool,
        host_ip=host,
        guest_ip=guest,
        uplink_ip=uplink,
        denied_networks=denied_networks,
    )
