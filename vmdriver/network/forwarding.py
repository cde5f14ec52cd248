"""Whether this host forwards IPv4 (net.ipv4.ip_forward), which machines need and others may.

It is turned on for the first machine and given back with the last one, of whatever driver of this
host; one that was on already is none of ours. A note below /run, which the host forgets as it
forgets the setting, says that it was us: it is written before the effect.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.errors import NetworkError
from vmdriver.host.threads import Threads
from vmdriver.network.guard.wire import NETFILTER, ROUTE, attributes, dump, open_socket

_log = logging.getLogger(__name__)
NOTES = Path("/run/vmd-host")
_SETTING = Path("/proc/sys/net/ipv4/ip_forward")
_NAMESPACE = Path("/proc/thread-self/ns/net")
ON, OFF = "1", "0"
_GET_LINK, _GET_CHAIN, _ALIAS, _HOOK = 18, 10 << 8 | 4, 20, 4
_HOOKS = {struct.pack(">I", 2), struct.pack(">I", 4)}
"""Forward and postrouting (linux/netfilter.h)."""
_FAMILIES = {1: "inet", 2: "ip"}
_OURS = "vmdriver_"


@dataclass(frozen=True)
class _Others:
    """What of this host besides us says whether it is to forward."""

    machines: bool
    """There are links of any driver's machines."""
    chains: tuple[str, ...]
    """Chains of others, by name, through which forwarded packets go."""


@dataclass
class Forwarding:
    """For one driver. Whoever calls waits for who called before."""

    threads: Threads
    notes: Path = NOTES
    _users: set[str] = field(default_factory=set, init=False)
    _alone: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def need(self, user: str) -> bool:
        """Have it on, until `left` with that name. True: it was off. NetworkError."""
        async with self._alone:
            self._users.add(user)
            return await self._turn_on()

    async def again(self) -> bool:
        """Have it on still. True: it was off. NetworkError."""
        async with self._alone:
            return await self._turn_on()

    async def left(self, user: str) -> None:
        """That one needs it no more: with the last one of all it is as it was. NetworkError."""
        async with self._alone:
            self._users.discard(user)
            await self._give_back()

    async def give_back(self) -> None:
        """If a driver has turned it on, and no machine is left. NetworkError."""
        async with self._alone:
            await self._give_back()

    async def _turn_on(self) -> bool:
        if await self.threads.run(_is_on):
            return False
        await self.threads.run(self._set_on)
        return True

    async def _give_back(self) -> None:
        if self._users or not self._note.exists():
            return
        await self.threads.run(self._set_off)

    # --- blocking

    @property
    def _note(self) -> Path:
        """Of this network namespace, which another that sees the same /run is not."""
        number = _NAMESPACE.stat().st_ino
        return self.notes / f"ip_forward-{number}"

    def _set_on(self) -> None:
        with _translated("turned on"), self._locked():
            if not self._note.exists():
                part = self._note.with_suffix(".part")
                part.write_text(json.dumps({"was": OFF, "chains": _others().chains}))
                part.replace(self._note)
            _SETTING.write_text(ON)

    def _set_off(self) -> None:
        with _translated("turned off"), self._locked():
            others = _others()
            if others.machines or not self._note.exists():
                return
            new = set(others.chains) - self._known()
            if new:
                # Whoever has them found it on, and would find it off.
                text = "IPv4 forwarding stays on: others forward by now (%s)"
                _log.warning(text, ", ".join(sorted(new)))
            else:
                _SETTING.write_text(OFF)
            self._note.unlink()

    def _known(self) -> set[str]:
        with suppress(OSError, ValueError, TypeError, KeyError):
            return {str(name) for name in json.loads(self._note.read_text())["chains"]}
        return set()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all drivers of this host."""
        self.notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            self.notes / "ip_forward.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _others() -> _Others:
    with closing(open_socket(ROUTE)) as asked:
        links = dump(asked, _GET_LINK, struct.pack("=B15x", socket.AF_UNSPEC))
    aliases = [dict(attributes(link, 16)).get(_ALIAS, b"") for link in links]
    machines = any(alias.startswith(b"vmdriver/") for alias in aliases)
    with closing(open_socket(NETFILTER)) as asked:
        chains = dump(asked, _GET_CHAIN, struct.pack("=BBH", 0, 0, 0))
    return _Others(machines, tuple(sorted(filter(None, map(_forwards, chains)))))


def _forwards(chain: bytes) -> str:
    """Its name, if it is one of others through which forwarded packets go."""
    known = dict(attributes(chain, 4))
    table, name = (known[key].rstrip(b"\0").decode(errors="replace") for key in (1, 3))
    hook = dict(attributes(known.get(_HOOK, b""))).get(1, b"")
    if chain[0] not in _FAMILIES or hook not in _HOOKS or table.startswith(_OURS):
        return ""
    return f"{_FAMILIES[chain[0]]} {table} {name}"


def _is_on() -> bool:
    with _translated("read"):
        return _SETTING.read_text().strip() != OFF


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NetworkError(
            f"IPv4 forwarding of this host cannot be {what}: {error.strerror}",
            detail=str(error),
        ) from error
