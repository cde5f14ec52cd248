"""What the kernel says of changes in one network namespace: tables of rules, links, addresses,
routes, forwarding. Formats: rtnetlink(7), linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from vmdriver.host.log_context import at_nothing
from vmdriver.network.guard.table_prints import Table
from vmdriver.network.guard.wire import (
    NETFILTER,
    ROUTE,
    attributes,
    messages,
    open_socket,
)

_NFTABLES_GROUPS = (7,)
_ROUTE_GROUPS = (1, 3, 4, *(5, 7, 8, 24), *(9, 11, 19, 25))
"""Links, neighbours, queues; then addresses, routes, routing rules and what devices are to do, of
IPv4 and of IPv6.
"""
_NEW_GENERATION = 15
_LINKS, _ADDRESSES, _ROUTES, _SETTINGS = {16, 17}, {20, 21}, {24, 25}, {80, 81}
_LOCAL_TABLE = 255
_QUEUES = {36, 37, 44, 45}
"""And what is done to packets in them."""
_NEIGHBOURS, _NEIGHBOUR_GONE, _PERMANENT = {28, 29}, 29, 0x80
_ALL = struct.pack("=i", -1)
"""The index of what is of no single device."""
_READ_BYTES = 1 << 17
_TOGETHER_S = 0.02
"""What is said within this time is looked at once: whoever empties tables in a loop does not
keep us busy.
"""


@dataclass
class Heard:
    """What may have changed."""

    tables: set[Table] = field(default_factory=set)
    interfaces: set[int | str] = field(default_factory=set)
    """By index, and by name where that was said."""
    settings: bool = False
    """Forwarding, or routing rules."""
    addresses: bool = False
    """What is reached at this namespace itself."""
    everything: bool = False
    """Something was said that could not be kept: it may have been anything."""


class Listener:
    """Opened in the namespace of the calling thread. `told`, in the loop's thread, gets what was
    heard.
    """

    def __init__(self) -> None:
        self.changes: Counter[Table] = Counter()
        """How often each table was changed since the beginning."""
        self.last: dict[Table, str] = {}
        """Who changed a table last, in words."""
        self._pending: set[Table] = set()
        self._tables = open_socket(NETFILTER, _NFTABLES_GROUPS)
        try:
            self._links = open_socket(ROUTE, _ROUTE_GROUPS)
        except BaseException:
            self._tables.close()
            raise
        self._told: Callable[[Heard], None] = lambda _: None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.lost = 0
        """How often something could not be kept."""

    def start(self, told: Callable[[Heard], None]) -> None:
        """Begin to tell."""
        self._told = told
        # For as long as it lives, not for the launch that it was begun in.
        at_nothing().run(self._listen)

    def _listen(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        for one in (self._tables, self._links):
            loop.add_reader(one, self._soon)

    def _soon(self) -> None:
        loop = asyncio.get_running_loop()
        for one in (self._tables, self._links):
            loop.remove_reader(one)
        if self._timer is None:
            self._timer = loop.call_later(_TOGETHER_S, self._later)

    def _later(self) -> None:
        self.hear()
        self._listen()

    def hear(self) -> None:
        """Read what has been said up to now, and tell it. Nothing, once it is closed."""
        heard = Heard()
        if self._closed:
            return
        self._hear(self._tables, heard, self._of_tables)
        self._hear(self._links, heard, self._of_links)
        if heard != Heard():
            self._told(heard)

    def close(self) -> None:
        """Hear nothing any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(RuntimeError):  # no loop: nothing was begun
            loop = asyncio.get_running_loop()
            for one in (self._tables, self._links):
                loop.remove_reader(one)
        self._tables.close()
        self._links.close()

    def _hear(
        self,
        source: socket.socket,
        heard: Heard,
        take: Callable[[int, bytes, Heard], None],
    ) -> None:
        while True:
            try:
                data = source.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1  # they came faster than they were read
                heard.everything = True
                self._pending.clear()
                continue
            for kind, _, payload in messages(data):
                take(kind, payload, heard)

    def _of_tables(self, kind: int, payload: bytes, heard: Heard) -> None:
        if kind & 0xFF == _NEW_GENERATION:
            self._committed(dict(attributes(payload, 4)))
            return
        name = next((text for key, text in attributes(payload, 4) if key == 1), b"")
        table = Table(payload[0], name.rstrip(b"\0").decode(errors="replace"))
        heard.tables.add(table)
        self._pending.add(table)

    def _committed(self, generation: dict[int, bytes]) -> None:
        name = generation.get(3, b"").rstrip(b"\0").decode(errors="replace")
        (number,) = struct.unpack(">I", generation.get(2, b"\0\0\0\0"))
        for table in self._pending:
            self.changes[table] += 1
            self.last[table] = f"{name or 'somebody'} (process {number})"
        self._pending.clear()

    def _of_links(self, kind: int, payload: bytes, heard: Heard) -> None:
        if kind in _LINKS:
            (index,) = struct.unpack_from("=i", payload, 4)
            heard.interfaces.add(index)
            heard.interfaces |= {
                text.rstrip(b"\0").decode(errors="replace")
                for key, text in attributes(payload, 16)
                if key == 3
            }
        elif kind in _ADDRESSES | _QUEUES:
            heard.addresses |= kind in _ADDRESSES
            heard.interfaces |= set(struct.unpack_from("=i", payload, 4))
        elif kind in _NEIGHBOURS:
            # Those that the kernel finds and forgets by itself are not ours.
            index, state = struct.unpack_from("=iH", payload, 4)
            if kind == _NEIGHBOUR_GONE or state & _PERMANENT:
                heard.interfaces.add(index)
        elif kind in _ROUTES:
            # With its first way to everywhere a host may begin to have IPv6.
            everywhere = payload[1] == 0
            heard.addresses |= everywhere or payload[4] == _LOCAL_TABLE
            for key, content in attributes(payload, 12):
                if key == 4:
                    heard.interfaces |= set(struct.unpack("=i", content))
        elif kind in _SETTINGS:
            (index,) = struct.unpack("=i", dict(attributes(payload, 4)).get(1, _ALL))
            heard.settings |= index <= 0
            heard.interfaces.add(index)
        else:
            heard.settings = True
