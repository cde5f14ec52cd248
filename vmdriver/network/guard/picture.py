"""How a machine's network is: each thing of it by a name for people, and what it is like. What is
as it was made looks the same; what QEMU, a carrier or a counter changes is not in it. Formats:
rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vmdriver.network.guard.table_prints import Prints, Table
from vmdriver.network.guard.wire import (
    NETFILTER,
    ROUTE,
    attributes,
    dumped,
    open_socket,
)

_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_NEIGHBOUR, _GET_RULE = 18, 22, 26, 30, 34
_GET_QUEUE = 38
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBi")
_ROUTE = struct.Struct("=BBBBBBBBI")
_QUEUE = struct.Struct("=BxxxiIII")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_UP_OR_NO_ARP = 0x1 | 0x80
_BOTH = (socket.AF_INET, socket.AF_INET6)
_CLONED, _BY_KERNEL, _OWN_KINDS = 0x200, 2, {2, 4, 5}
"""Of a route: what the kernel noted of one destination; that it made it; to its own address, to the
nearest of several, to a group.
"""
_PERMANENT = 0x80
_OWN_LOOK = {1, 4, 10, 20, 43}
"""Of a link: its address, MTU, master, alias (its mark), XDP program."""
_PROTOCOLS = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}

Picture = Mapping[str, bytes]


@dataclass(frozen=True)
class Scene:
    """What is looked at in one network namespace. None: whatever is there."""

    tables: frozenset[Table] | None = frozenset()
    interfaces: frozenset[str] | None = frozenset()
    sysctls: frozenset[str] = frozenset()
    """Below net/, such as ipv4/ip_forward."""


def look(scene: Scene) -> tuple[Picture, Mapping[int, str]]:
    """In the calling thread's namespace: the picture, and the names of the interfaces in it by
    their index. OSError.
    """
    found: dict[str, bytes] = {}
    names: dict[int, str] = {}
    if scene.tables is None or scene.tables:
        with contextlib.closing(open_socket(NETFILTER)) as asked:
            prints = Prints(asked).of(scene.tables)
        found |= {table_words(table): digest for table, digest in prints.items()}
    if scene.interfaces is None or scene.interfaces:
        with contextlib.closing(open_socket(ROUTE)) as asked:
            names = _links(asked, scene.interfaces, found)
            for part in (_addresses, _routes, _neighbours, _queues):
                found |= dict(part(asked, names))
            if scene.interfaces is None:
                found |= dict(_rules(asked))
    for name in scene.sysctls:
        with contextlib.suppress(FileNotFoundError):  # goes with its interface
            found[sysctl_words(name)] = Path("/proc/sys/net", name).read_bytes()
    return found, names


def differences(made: Picture, now: Picture) -> list[str]:
    """What is not as it was made, in words."""
    words = [f"{what} is gone" for what in made if what not in now]
    words += [f"{w} was changed" for w in made if w in now and now[w] != made[w]]
    return words + [f"{what} was added" for what in now if what not in made]


def only(scene: Scene, everything: Picture) -> Picture:
    """What one scene shows, of a picture of all that there is."""
    names = {table_words(table) for table in scene.tables or ()}
    names |= {sysctl_words(name) for name in scene.sysctls}
    ends = tuple(f" {name}" for name in scene.interfaces or ())
    return {
        what: seen
        for what, seen in everything.items()
        if what in names
        or (what.endswith(ends) and not what.startswith(("table ", "sysctl ")))
    }


def table_words(table: Table) -> str:
    """As nft calls it."""
    return f"table {_PROTOCOLS.get(table.family, table.family)} {table.name}"


def sysctl_words(name: str) -> str:
    """As sysctl(8) is given it."""
    return f"sysctl net/{name}"


def _links(
    asked: socket.socket, wanted: Collection[str] | None, found: dict[str, bytes]
) -> dict[int, str]:
    names = {}
    for data in dumped(asked, _GET_LINK, socket.AF_UNSPEC):
        _, kind, index, flags, _ = _LINK.unpack_from(data)
        known = dict(attributes(data, _LINK.size))
        name = known[3].rstrip(b"\0").decode(errors="replace")
        if wanted is not None and name not in wanted:
            continue
        names[index] = name
        look_of = [struct.pack("=HI", kind, flags & _UP_OR_NO_ARP)]
        look_of += [known[k] for k in sorted(_OWN_LOOK & known.keys())]
        found[f"interface {name}"] = b"|".join(look_of)
    return names


def _addresses(
    asked: socket.socket, names: Mapping[int, str]
) -> Iterator[tuple[str, bytes]]:
    for data in _dumped(asked, _GET_ADDRESS):
        _, length, _, _, index = _ADDRESS.unpack_from(data)
        known = dict(attributes(data, _ADDRESS.size))
        if index in names:
            address = ipaddress.ip_address(known.get(2, known[1]))
            yield f"address {address}/{length} of {names[index]}", b""


def _routes(
    asked: socket.socket, names: Mapping[int, str]
) -> Iterator[tuple[str, bytes]]:
    for data in _dumped(asked, _GET_ROUTE):
        family, length, _, tos, table, maker, scope, kind, flags = _ROUTE.unpack_from(
            data
        )
        known = dict(attributes(data, _ROUTE.size))
        (index,) = struct.unpack("=i", known.get(4, b"\0\0\0\0"))
        # Those of IPv6 come a little after their address, or with a carrier, which is QEMU's.
        goes_along = (maker == _BY_KERNEL and kind in _OWN_KINDS) or flags & _CLONED
        if index in names and not (family == socket.AF_INET6 and goes_along):
            size = 4 if family == socket.AF_INET else 16
            to = ipaddress.ip_address(known.get(1, bytes(size)))
            rank = known.get(6, b"")
            rest = struct.pack("=BBB", tos, scope, kind)
            rest += known.get(5, b"") + known.get(7, b"") + rank  # gateway, source
            yield f"route {to}/{length} in table {table} by {names[index]}", rest


def _neighbours(
    asked: socket.socket, names: Mapping[int, str]
) -> Iterator[tuple[str, bytes]]:
    for data in _dumped(asked, _GET_NEIGHBOUR):
        _, index, state, flags, _ = _NEIGHBOUR.unpack_from(data)
        known = dict(attributes(data, _NEIGHBOUR.size))
        if index in names and state & _PERMANENT:
            address = ipaddress.ip_address(known[1])
            rest = struct.pack("=B", flags) + known.get(2, b"")
            yield f"neighbour {address} of {names[index]}", rest


def _queues(
    asked: socket.socket, names: Mapping[int, str]
) -> Iterator[tuple[str, bytes]]:
    """Those that somebody chose: what the kernel begins with has no number. One that keeps nothing
    changes nothing; libvirt gives it to the link of that name at each start.
    """
    for data in dumped(asked, _GET_QUEUE, socket.AF_UNSPEC):
        _, index, handle, parent, _ = _QUEUE.unpack_from(data)
        known = dict(attributes(data, _QUEUE.size))
        if index in names and handle and known[1] != b"noqueue\0":
            rest = struct.pack("=I", handle) + known[1] + known.get(2, b"")
            yield f"queue {parent:x} of {names[index]}", rest


def _rules(asked: socket.socket) -> Iterator[tuple[str, bytes]]:
    """What chooses a table of routes. Only in a namespace that is all ours."""
    for number, data in enumerate(_dumped(asked, _GET_RULE)):
        yield f"routing rule {number}", data


def _dumped(asked: socket.socket, kind: int) -> Iterator[bytes]:
    """Of both versions of IP. A kernel without one answers with what it has."""
    for family in _BOTH:
        yield from (one for one in dumped(asked, kind, family) if one[0] == family)
