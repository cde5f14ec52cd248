"""Networks that an operator or a request names for what a sandbox reaches."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

MOST = 64
"""In one list of a request."""
EVERYTHING = "0.0.0.0/0"
"""As `networks_of` has it, whichever networks it was made of."""


def networks_of(values: Sequence[Any]) -> tuple[str, ...]:
    """IPv4 networks, sorted, none within another. ValueError names the one that is none.

    >>> networks_of(["192.0.2.0/25", "192.0.2.128/25", "10.1.2.3"])
    ('10.1.2.3/32', '192.0.2.0/24')
    """
    found = (_network(value) for value in values)
    return tuple(str(one) for one in ipaddress.collapse_addresses(found))


def _network(value: Any) -> ipaddress.IPv4Network:
    try:
        return ipaddress.IPv4Network(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ValueError(
            f"{value!r} is no IPv4 network, such as 10.1.0.0/16, without host bits"
        ) from error


def within(network: str, others: Sequence[str]) -> bool:
    """Whether all of it is in one of the others."""
    one = ipaddress.IPv4Network(network)
    return any(one.subnet_of(ipaddress.IPv4Network(other)) for other in others)
