"""What a machine's network is made with, of rtnetlink: many requests go to the kernel in one write,
where pyroute2 takes a millisecond of this process for each. Blocking, for threads; a socket
belongs to the namespace that it was opened in. Formats: rtnetlink(7), linux/if_link.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import NamedTuple

from vmdriver.network.guard.wire import (
    ROUTE,
    Refused,
    answered,
    attribute,
    attributes,
    dumped,
    open_socket,
    requested,
)

_NEW_LINK, _DELETE_LINK, _GET_LINK = 16, 17, 18
_NEW_ADDRESS, _GET_ADDRESS, _NEW_ROUTE, _GET_ROUTE, _NEW_NEIGHBOUR = 20, 22, 24, 26, 28
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_UP = 1
_MAIN, _STATIC, _UNICAST, _ANYWHERE, _ON_LINK, _ON_LINK_FLAG = 254, 4, 1, 0, 253, 4
_PERMANENT = 0x80
_MAC, _NAME, _INFO, _ALIAS, _NAMESPACE = 1, 3, 18, 20, 28
_INFO_KIND, _INFO_DATA, _PEER = 1, 2, 1
_ADDRESS_FLAGS, _UNTRIED = 8, 0x02 | 0x200
"""Of IPv6: nobody is asked whether it is theirs (IFA_F_NODAD), and it brings no route along."""
_PERMANENT_ADDRESS, _BY_ROUTER, _CLONED = 0x80, 9, 0x200
_PEERS_ADDRESS, _OWN_ADDRESS = 1, 2
"""Both are the same where a link has many peers."""


@dataclass(frozen=True)
class Link:
    """An interface."""

    index: int
    name: str
    alias: str | None
    kind: str
    """Such as veth; "" for one of the kernel's own."""


class Request(NamedTuple):
    """One thing that is asked for."""

    kind: int
    flags: int
    payload: bytes


@contextmanager
def opened() -> Iterator[socket.socket]:
    """A socket in the calling thread's namespace. OSError."""
    with closing(open_socket(ROUTE)) as asked:
        yield asked


# --- what there is


def links(asked: socket.socket) -> list[Link]:
    """All of them. OSError."""
    return [_link(data) for data in dumped(asked, _GET_LINK, socket.AF_UNSPEC)]


def _link(data: bytes) -> Link:
    known = dict(attributes(data, _LINK.size))
    info = dict(attributes(known.get(_INFO, b"")))
    alias = known.get(_ALIAS)
    return Link(
        _LINK.unpack_from(data)[2],
        _text(known[_NAME]),
        None if alias is None else _text(alias),
        _text(info.get(_INFO_KIND, b"")),
    )


def index_of(asked: socket.socket, name: str) -> int | None:
    """Of the link of that name. OSError."""
    wanted = _LINK.pack(0, 0, 0, 0, 0) + attribute(_NAME, name.encode() + b"\0")
    try:
        return _link(answered(asked, _GET_LINK, wanted)).index
    except Refused as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def there(asked: socket.socket, name: str) -> int:
    """The same of one that has to be there. OSError: ENODEV."""
    index = index_of(asked, name)
    if index is None:
        raise OSError(errno.ENODEV, f"there is no link {name}")
    return index


def alias_of(asked: socket.socket, index: int) -> str | None:
    """A link's. OSError."""
    wanted = _LINK.pack(0, 0, index, 0, 0)
    return _link(answered(asked, _GET_LINK, wanted)).alias


def addresses(asked: socket.socket) -> list[tuple[IPv4Address, str]]:
    """Those of IPv4, each with its label, which is the name of its link; of a link with one at its
    other end both, if that one is known. OSError.
    """
    found = []
    for data in dumped(asked, _GET_ADDRESS, socket.AF_INET):
        known = dict(attributes(data, _ADDRESS.size))
        label = _text(known.get(3, b""))
        ends = {known[kind] for kind in (_PEERS_ADDRESS, _OWN_ADDRESS) if kind in known}
        found += [(IPv4Address(end), label) for end in ends]
    return found


def addresses_ipv6(asked: socket.socket) -> list[tuple[IPv6Address, int, bool]]:
    """Each with the index of its link, and whether it stays until it is taken away. OSError."""
    found = []
    for data in dumped(asked, _GET_ADDRESS, socket.AF_INET6):
        family, _, short, _, index = _ADDRESS.unpack_from(data)
        if family != socket.AF_INET6:
            continue  # the kernel has none, and answers with others
        known = dict(attributes(data, _ADDRESS.size))
        (flags,) = struct.unpack(
            "=I", known.get(_ADDRESS_FLAGS, struct.pack("=I", short))
        )
        address = IPv6Address(known.get(_OWN_ADDRESS, known[_PEERS_ADDRESS]))
        found.append((address, index, bool(flags & _PERMANENT_ADDRESS)))
    return found


def destinations(
    asked: socket.socket, table: int, family: int = socket.AF_INET
) -> list[tuple[IPv4Network | IPv6Network, int]]:
    """Those of a table's routes, but for the default ones, with the index of its link (0: none).
    OSError.
    """
    found = []
    for data in dumped(asked, _GET_ROUTE, family):
        head = _ROUTE.unpack_from(data)
        known = dict(attributes(data, _ROUTE.size))
        if head[0] != family or head[8] & _CLONED:
            continue
        (wide,) = struct.unpack("=I", known.get(15, struct.pack("=I", head[4])))
        if wide == table and 1 in known:
            (index,) = struct.unpack("=i", known.get(4, b"\0\0\0\0"))
            found.append((ip_network((known[1], head[1])), index))
    return found


def links_by_routers(asked: socket.socket) -> set[int]:
    """Indexes of links that IPv6 routes lead through which routers have advertised. OSError."""
    found: set[int] = set()
    for data in dumped(asked, _GET_ROUTE, socket.AF_INET6):
        head, known = _ROUTE.unpack_from(data), dict(attributes(data, _ROUTE.size))
        if head[0] == socket.AF_INET6 and head[5] == _BY_ROUTER and 4 in known:
            found |= set(struct.unpack("=i", known[4]))
    return found


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode(errors="replace")


# --- what is made


def do(asked: socket.socket, *requests: Request) -> None:
    """All of them, one after the other. OSError of the first that is refused; the others are done
    or refused all the same.
    """
    requested(asked, requests)


def remove(asked: socket.socket, index: int) -> None:
    """A link, there or not. OSError."""
    try:
        do(asked, Request(_DELETE_LINK, 0, _LINK.pack(0, 0, index, 0, 0)))
    except Refused as error:
        if error.errno != errno.ENODEV:
            raise


def changed_link(
    index: int, *, alias: str | None = None, mac: str = "", up: bool = False
) -> Request:
    """A link with another alias, or address, or brought up."""
    flags = _UP if up else 0
    payload = _LINK.pack(0, 0, index, flags, flags)
    if alias is not None:
        payload += attribute(_ALIAS, alias.encode() + b"\0")
    if mac:
        payload += attribute(_MAC, _mac(mac))
    return Request(_NEW_LINK, 0, payload)


def pair(name: str, mac: str, peer: str, peer_mac: str, namespace: int) -> Request:
    """Two links, of which what comes to one leaves by the other, which is in that namespace."""
    end = _LINK.pack(0, 0, 0, 0, 0) + _named(peer, peer_mac)
    end += attribute(_NAMESPACE, struct.pack("=I", namespace))
    data = attribute(_INFO_DATA, attribute(_PEER, end))
    info = attribute(_INFO_KIND, b"veth\0") + data
    payload = _LINK.pack(0, 0, 0, 0, 0) + _named(name, mac) + attribute(_INFO, info)
    return Request(_NEW_LINK, _CREATE | _EXCLUSIVE, payload)


def _named(name: str, mac: str) -> bytes:
    return attribute(_NAME, name.encode() + b"\0") + attribute(_MAC, _mac(mac))


def address(index: int, ip: str, length: int) -> Request:
    """One of a link's own; of IPv6 without a route of its own, and at once."""
    own = ip_address(ip).packed
    payload = _ADDRESS.pack(_family(ip), length, 0, 0, index)
    payload += attribute(_OWN_ADDRESS, own) + attribute(_PEERS_ADDRESS, own)
    if _family(ip) == socket.AF_INET6:
        payload += attribute(_ADDRESS_FLAGS, struct.pack("=I", _UNTRIED))
    return Request(_NEW_ADDRESS, _CREATE | _REPLACE, payload)


def route(index: int, to: str = "", *, gateway: str = "", source: str = "") -> Request:
    """To one address that is on that link, from one of ours; or to everywhere by a gateway, which
    is taken to be on that link.
    """
    family = _family(gateway or to)
    one = 32 if family == socket.AF_INET else 128
    scope, length = (_ANYWHERE, 0) if gateway else (_ON_LINK, one)
    flags = _ON_LINK_FLAG if gateway else 0
    kinds = (_MAIN, _STATIC, scope, _UNICAST, flags)
    payload = _ROUTE.pack(family, length, 0, 0, *kinds)
    for kind, ip in ((1, to), (5, gateway), (7, source)):
        if ip:
            payload += attribute(kind, ip_address(ip).packed)
    payload += attribute(4, struct.pack("=i", index))
    return Request(_NEW_ROUTE, _CREATE | _REPLACE, payload)


def neighbour(index: int, ip: str, mac: str) -> Request:
    """What is known of it for good, and not asked for."""
    payload = _NEIGHBOUR.pack(_family(ip), index, _PERMANENT, 0, 0)
    payload += attribute(1, ip_address(ip).packed) + attribute(2, _mac(mac))
    return Request(_NEW_NEIGHBOUR, _CREATE | _REPLACE, payload)


def _family(ip: str) -> int:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
