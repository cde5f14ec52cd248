"""What the kernel has of nftables tables, as one digest each: equal digests mean equal tables,
whatever the order in which sets list their elements, and without what the kernel counts.
Formats: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
from collections.abc import Collection
from typing import NamedTuple

from vmdriver.network.guard.wire import attribute, attributes, dump

_NFTABLES = 10 << 8
_GET_TABLE, _GET_CHAIN, _GET_RULE = _NFTABLES | 1, _NFTABLES | 4, _NFTABLES | 7
_GET_SET, _GET_ELEMENTS = _NFTABLES | 10, _NFTABLES | 13
_GET_OBJECT, _GET_FLOWTABLE = _NFTABLES | 19, _NFTABLES | 23
_TRIES = 20
_NAME = 1
"""Attribute with the table's name: of tables and of all that is in one."""
_COUNTED = {
    _GET_TABLE: {3, 4},  # use, handle
    _GET_CHAIN: {2, 6, 8},  # handle, use, counters
    _GET_RULE: {3, 6, 9},  # handle, position, id
    _GET_SET: {10, 16, 19},  # id, handle, number of elements
    _GET_OBJECT: {5, 6},  # use, handle
    _GET_FLOWTABLE: {4, 5},  # use, handle
}
"""Attributes that say nothing of what a table does."""
_EXPRESSIONS, _EXPRESSION_NAME, _EXPRESSION_DATA = 4, 1, 2
_STATEFUL = {b"counter\0", b"quota\0", b"last\0"}
_STATEFUL_OBJECTS = {struct.pack(">I", 1), struct.pack(">I", 2)}
"""Counters and quotas, by their attribute 3; what they have counted is attribute 4."""
_SET_NAME, _SET_FLAGS = 2, 3
_DYNAMIC = 0x10 | 0x20
"""Sets that packets fill, or with elements that end: NFT_SET_TIMEOUT, NFT_SET_EVAL."""
_ELEMENTS = 3


class Table(NamedTuple):
    """A table's name; `family` is NFPROTO_*: 1 inet, 2 ip, 3 arp, 5 netdev, 7 bridge, 10 ip6."""

    family: int
    name: str


INET = 1


class Prints:
    """Reads them through a socket, in whose network namespace they are."""

    def __init__(self, asked: socket.socket) -> None:
        self._asked = asked

    def of(self, wanted: Collection[Table] | None = None) -> dict[Table, bytes]:
        """Digests of these tables, or of all that there are; none for one that is not there.
        OSError.
        """
        if wanted is None:
            return self._read(0, "")
        found: dict[Table, bytes] = {}
        for table in wanted:
            digest = self._read(table.family, table.name).get(table)
            if digest is not None:
                found[table] = digest
        return found

    def _read(self, family: int, name: str) -> dict[Table, bytes]:
        """Of those of that name; the kernel may answer with more. One that goes meanwhile is
        not there.
        """
        for _ in range(_TRIES):
            try:
                return self._read_once(family, name)
            except FileNotFoundError:
                if name:
                    return {}
            except BlockingIOError:
                continue
        raise BlockingIOError(errno.EAGAIN, "tables are being changed all the time")

    def _read_once(self, family: int, name: str) -> dict[Table, bytes]:
        parts: dict[Table, list[bytes]] = {}
        query = _query(family, name)
        for kind in _COUNTED:
            for content in dump(self._asked, kind, query):
                table = Table(content[0], _text(dict(attributes(content, 4))[_NAME]))
                if name and table != (family, name):
                    continue
                parts.setdefault(table, []).append(_canonical(kind, content))
                if kind == _GET_SET:
                    parts[table] += self._elements(table, content)
        return {table: _digest(found) for table, found in parts.items()}

    def _elements(self, table: Table, content: bytes) -> list[bytes]:
        known = dict(attributes(content, 4))
        (flags,) = struct.unpack(">I", known.get(_SET_FLAGS, b"\0\0\0\0"))
        if flags & _DYNAMIC:
            return []
        query = _query(table.family, table.name)
        query += attribute(_SET_NAME, known[_SET_NAME])
        lists = (
            data
            for answer in dump(self._asked, _GET_ELEMENTS, query)
            for kind, data in attributes(answer, 4)
            if kind == _ELEMENTS
        )
        return sorted(element for data in lists for _, element in attributes(data))


def _query(family: int, name: str) -> bytes:
    header = struct.pack("=BBH", family, 0, 0)
    return header + (attribute(_NAME, name.encode() + b"\0") if name else b"")


def _text(content: bytes) -> str:
    return content.rstrip(b"\0").decode(errors="replace")


def _digest(parts: list[bytes]) -> bytes:
    found = hashlib.sha256()
    for part in parts:
        found.update(struct.pack("=I", len(part)) + part)
    return found.digest()


def _canonical(kind: int, content: bytes) -> bytes:
    counted = _COUNTED[kind]
    if kind == _GET_OBJECT and dict(attributes(content, 4))[3] in _STATEFUL_OBJECTS:
        counted = {*counted, 4}
    kept = [struct.pack("=H", kind)]
    for name, data in attributes(content, 4):
        if name in counted:
            continue
        if kind == _GET_RULE and name == _EXPRESSIONS:
            kept += [_expression(data) for _, data in attributes(data)]
        else:
            kept.append(attribute(name, data))
    return b"".join(kept)


def _expression(data: bytes) -> bytes:
    """What counts packets is the same whatever it has counted."""
    known = dict(attributes(data))
    return known[_EXPRESSION_NAME] if known[_EXPRESSION_NAME] in _STATEFUL else data
