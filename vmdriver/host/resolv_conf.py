"""Which name servers this host asks, as resolv.conf(5) says it."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

PLACE = Path("/etc/resolv.conf")
_MOST_SERVERS, _MOST_DOMAINS, _MOST_BYTES = 3, 6, 64 * 1024
"""The first two are what the C library takes."""
_DOMAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_DEFAULT = "127.0.0.1"


@dataclass(frozen=True)
class ResolvConf:
    """What such a file says."""

    servers: tuple[str, ...] = (_DEFAULT,)
    """Addresses of either kind, the first one first."""
    search: tuple[str, ...] = ()
    """Domains that are tried for short names."""

    @property
    def for_guests(self) -> tuple[str, ...]:
        """Those that a guest could ask itself: IPv4, and not this host."""
        return tuple(
            server
            for server in self.servers
            if ":" not in server and not _is_this_host(server)
        )


def parse(text: str) -> ResolvConf:
    """Lines that say nothing to us, or are no sense, are passed over, as the C library does."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    for line in text.splitlines():
        key, *rest = line.split() or [""]
        if key == "nameserver" and rest and _is_address(rest[0]):
            servers.append(rest[0])
        elif key in {"search", "domain"}:
            named = (word.rstrip(".") for word in rest)
            search = tuple(word for word in named if _DOMAIN.fullmatch(word))
    known = tuple(servers[:_MOST_SERVERS]) or (_DEFAULT,)
    return ResolvConf(known, search[:_MOST_DOMAINS])


def _is_this_host(server: str) -> bool:
    """Its loopback, the address that the C library takes for it, or one that it has now: only these
    can be bound.
    """
    address = ipaddress.IPv4Address(server)
    if address.is_loopback or address.is_unspecified:
        return True
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.bind((server, 0))
        except OSError:
            return False
    return True


def _is_address(word: str) -> bool:
    try:
        ipaddress.ip_address(word)
    except ValueError:
        return False
    return True


def read(path: Path = PLACE) -> ResolvConf:
    """Of that file; without one, what the C library does without one."""
    try:
        with path.open("rb") as file:
            return parse(file.read(_MOST_BYTES).decode(errors="replace"))
    except OSError:
        return ResolvConf()


class Followed:
    """The host's file of this moment: what changes it changes what is asked next."""

    def __init__(self, path: Path = PLACE) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._known = ResolvConf()

    def now(self) -> ResolvConf:
        """Read again where it is another file, or was written, since."""
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            seen = None
        if seen is None or seen != self._seen:
            self._seen, self._known = seen, read(self._path)
        return self._known
