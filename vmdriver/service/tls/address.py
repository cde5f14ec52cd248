"""HOST:PORT, as operators write it."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """An address or a name, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{shown}:{self.port}"


def parse_address(text: str) -> Address:
    """ValueError for what is none.

    >>> parse_address("[2001:db8::1]:7443")
    Address(host='2001:db8::1', port=7443)
    """
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host or (":" in host) != bracketed or not host.isprintable() or " " in host:
        raise ValueError(f"{text!r} is not HOST:PORT; an IPv6 address is in brackets")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not HOST:PORT; a port is between 1 and 65535")
    return Address(host, int(port))
