"""The driver's end: who connects shows a certificate of the operator's authority that is for a name
on the operator's list, and is then at the socket of the one service that is for others.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vmdriver.errors import ConfigError
from vmdriver.host.visible import visible
from vmdriver.service.tls import counts
from vmdriver.service.tls.address import Address
from vmdriver.service.tls.certificate import (
    admitted,
    names_of,
    subject_of,
    until_of,
)
from vmdriver.service.tls.context import PROTOCOL
from vmdriver.service.tls.ends import End, keep_alive
from vmdriver.service.tls.identity import Identity

_log = logging.getLogger(__name__)
HANDSHAKE_S = 5.0
MOST_HANDSHAKES = 32
"""Of strangers at one time. One more, and the one that has taken longest goes, of the host that has
most of them.
"""
MOST_OF_ONE = 8
"""Connections of one name: each gateway's composed driver has one, and for half a minute those that
a link has cut without a word. One more, and that name's oldest goes.
"""
MOST = 64
_WAITING = 128
"""Of the kernel's queue."""
_AGAIN_S = 0.2
_SAID_AGAIN_S = 60.0
_MOST_SAID = 256
_CLOCK_S = 2.0
"""Between looks at the clock, which can be set while a certificate is running out."""


@dataclass(eq=False)
class Guest:
    """Who was let in, `until` its certificate ends."""

    name: str
    host: str
    until: datetime
    ends: asyncio.TimerHandle | None = None


class Listener:
    """On one TCP port. `target`: the socket that those who are let in are joined with."""

    def __init__(
        self, address: Address, identity: Identity, names: Sequence[str], target: Path
    ) -> None:
        self.address = address
        self.identity = identity
        self._names, self._target = tuple(names), target
        self._socket: socket.socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._handshakes: dict[asyncio.Task[None], str] = {}
        """With whose they are, oldest first."""
        self._guests: dict[End, Guest] = {}
        self._turned_away: dict[End, None] = {}
        """Those who are there still, oldest first."""
        self._said: OrderedDict[tuple[str, str], float] = OrderedDict()

    def start(self) -> None:
        """Listen. ConfigError if the address cannot be had."""
        host, port = self.address
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        both = host == "::" and socket.has_dualstack_ipv6()
        try:
            made = socket.create_server(
                (host, port), family=family, backlog=_WAITING, dualstack_ipv6=both
            )
        except OSError as error:
            raise ConfigError(
                f"bind_tls: {self.address} cannot be listened on: {error.strerror}",
                resolution="choose an address of this host and a free port",
            ) from error
        made.setblocking(False)
        self._socket, self.address = made, Address(host, made.getsockname()[1])
        self._tasks = [
            asyncio.create_task(self._accept(made), name="TLS listener"),
            asyncio.create_task(
                self.identity.follow(self._ask_again), name="TLS files"
            ),
        ]
        names = ", ".join(self._names)
        _log.info("serving on %s, by TLS, for %s", self.address, names)

    async def close(self) -> None:
        """No more, and those that are there end."""
        tasks = [*self._tasks, *self._handshakes]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._socket is not None:
            self._socket.close()
        for end in [*self._guests, *self._turned_away]:
            end.abort()
        await asyncio.sleep(0)  # for the loop to close what was aborted

    @property
    def connections(self) -> int:
        """That were let in and are there."""
        return len(self._guests)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listening)
            except OSError as error:  # no descriptor is left, or it has gone already
                self._say(str(error.strerror), "cannot be taken")
                await asyncio.sleep(_AGAIN_S)
                continue
            while len(self._handshakes) >= MOST_HANDSHAKES:
                self._drop_oldest()
            task = loop.create_task(self._take(connection, str(peer[0])))
            self._handshakes[task] = str(peer[0])
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))
            await asyncio.sleep(0)  # it has begun before it can be ended

    def _drop_oldest(self) -> None:
        """Unfinished handshake, of who has most."""
        ((host, _),) = Counter(self._handshakes.values()).most_common(1)
        oldest = next(task for task, own in self._handshakes.items() if own == host)
        del self._handshakes[oldest]
        oldest.cancel()

    async def _take(self, connection: socket.socket, host: str) -> None:
        """From the first byte to the passage, or to its end."""
        end, asked_by = End(self._gone), self.identity.context
        try:
            keep_alive(connection)
        except OSError:  # it has gone already
            connection.close()
            return
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: end,
                connection,
                ssl=asked_by,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=HANDSHAKE_S,
            )
            if asked_by is self.identity.context:
                await self._let_in(end, host)
            else:  # by what holds no more; whoever it is comes again
                self._turn_away(end)
        except OSError as error:  # ssl.SSLError and time-outs among them
            end.abort()
            text = getattr(error, "verify_message", "") or str(error) or "it hangs up"
            self._say(host, f"is no connection of TLS that we take: {text}")
        except BaseException:
            end.abort()
            raise

    async def _let_in(self, end: End, host: str) -> None:
        found = end.said("peercert") or {}
        secured = end.said("ssl_object")
        name = admitted(found, self._names)
        shown = visible(subject_of(found))[:200] if found else "nobody"
        if name is None and not names_of(found):
            why = f"is for no name (subjectAltName), but has a common name: {shown}"
        elif name is None:
            why = f"is for {shown}, which is not in tls_clients"
        elif secured.selected_alpn_protocol() != PROTOCOL or secured.session_reused:
            why = f"of {shown} speaks something else than gRPC"
        elif not self._room_for(name):
            why = f"of {shown} is one too many: {MOST} are there"
        else:
            await self._join(end, Guest(name, host, until_of(found)))
            return
        self._say(host, f"is refused: its certificate {why}")
        self._turn_away(end)

    def _turn_away(self, end: End) -> None:
        """By TLS, which says so better than a reset. Whoever does not answer that keeps a
        descriptor for a while: only so many do.
        """
        self._turned_away[end] = None
        end.close()
        while len(self._turned_away) > MOST_HANDSHAKES:
            oldest = next(iter(self._turned_away))
            del self._turned_away[oldest]
            oldest.abort()

    def _room_for(self, name: str) -> bool:
        """Nobody takes another one's place."""
        own = [end for end, guest in self._guests.items() if guest.name == name]
        full = len(self._guests) >= MOST
        if own and (full or len(own) >= MOST_OF_ONE):
            _log.warning("%s has connected too often: its oldest goes", name)
            own[0].abort()
            self._gone(own[0], None)
            return True
        return not full

    def _end_in_time(self, end: End, guest: Guest) -> None:
        left = (guest.until - datetime.now(UTC)).total_seconds()
        if left <= 0:
            end.abort()
            return
        loop, wait_s = asyncio.get_running_loop(), min(left, _CLOCK_S)
        guest.ends = loop.call_later(wait_s, self._end_in_time, end, guest)

    async def _join(self, end: End, guest: Guest) -> None:
        loop = asyncio.get_running_loop()
        self._end_in_time(end, guest)
        self._guests[end] = guest  # before anything is waited for: it counts
        inner = End(lambda *_: None)
        try:
            await loop.create_unix_connection(lambda: inner, str(self._target))
        except OSError as error:
            end.abort()
            _log.warning(
                "%s from %s finds no driver: %s", guest.name, guest.host, error
            )
            return
        end.join(inner)
        inner.join(end)
        counts.taken()
        _log.info("%s has connected from %s, by TLS", guest.name, guest.host)

    def _gone(self, end: End, _error: Exception | None) -> None:
        self._turned_away.pop(end, None)
        guest = self._guests.pop(end, None)
        if guest is None:
            return
        if guest.ends is not None:
            guest.ends.cancel()
        _log.info("%s from %s has gone", guest.name, guest.host)

    def _ask_again(self) -> None:
        """Whoever is still trusted is back in a moment; calls under way are asked again. At once:
        who is not could go on asking while what was written is still to be sent.
        """
        for end in list(self._guests):
            end.abort()

    def _say(self, host: str, what: str) -> None:
        """Once a minute of each host: anybody may call. All are counted."""
        counts.refused()
        now, key = asyncio.get_running_loop().time(), (host, what)
        if now - self._said.get(key, -_SAID_AGAIN_S) < _SAID_AGAIN_S:
            return
        self._said[key] = now
        self._said.move_to_end(key)
        while len(self._said) > _MOST_SAID:
            self._said.popitem(last=False)
        _log.warning("a connection from %s %s", host, visible(what))
