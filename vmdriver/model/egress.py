"""Networks that an operator or a request names for what a sandbox reaches."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any, Literal

Version = Literal[4, 6]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MOST = 64
"""In one list of a request."""
EVERYTHING = "0.0.0.0/0"
"""As `networks_of` has it, whichever networks it was made of."""
EVERYTHING_IPV6 = "::/0"


def networks_of(values: Sequence[Any], *, ipv6: bool = False) -> tuple[str, ...]:
    """Networks, sorted, none within another. ValueError names the one that is none, or is one of
    IPv6 where that is not to be.

    >>> networks_of(["192.0.2.0/25", "192.0.2.128/25", "10.1.2.3"])
    ('10.1.2.3/32', '192.0.2.0/24')
    >>> networks_of(["2001:db8::/32", "192.0.2.0/24", "2001:db8::1"], ipv6=True)
    ('192.0.2.0/24', '2001:db8::/32')
    """
    found = [_network(value, ipv6=ipv6) for value in values]
    four = [one for one in found if isinstance(one, ipaddress.IPv4Network)]
    six = [one for one in found if isinstance(one, ipaddress.IPv6Network)]
    return (
        *(str(one) for one in ipaddress.collapse_addresses(four)),
        *(str(one) for one in ipaddress.collapse_addresses(six)),
    )


def _network(value: Any, *, ipv6: bool) -> Network:
    kinds = "IPv4 or IPv6 network" if ipv6 else "IPv4 network"
    try:
        # An address of one link ("fe80::%eth0/64") is none that rules could name.
        right = isinstance(value, str) and "%" not in value
        found = ipaddress.ip_network(value if right else "")
    except ValueError as error:
        raise ValueError(
            f"{value!r} is no {kinds}, such as 10.1.0.0/16, without host bits"
        ) from error
    if found.version == 6 and not ipv6:
        raise ValueError(
            f"{value!r} is no IPv4 network, and sandboxes have no IPv6 (egress_ipv6 is off)"
        )
    return found


def version_of(network: str) -> Version:
    """Of a network or an address, which is known to be one."""
    return 6 if ":" in network else 4


def of_version(networks: Sequence[str], version: Version) -> tuple[str, ...]:
    """Those of them that are of that version of IP."""
    return tuple(one for one in networks if version_of(one) == version)


def within(network: str, others: Sequence[str]) -> bool:
    """Whether all of it is in one of the others."""
    one = ipaddress.ip_network(network)
    return any(_is_in(one, ipaddress.ip_network(other)) for other in others)


def _is_in(one: Network, other: Network) -> bool:
    return (
        one.version == other.version
        and one.network_address in other
        and one.prefixlen >= other.prefixlen
    )
