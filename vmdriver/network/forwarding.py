"""Whether this host forwards (net.ipv4.ip_forward, and net.ipv6.conf.all.forwarding for machines
with IPv6), which machines need and others may.

It is turned on for the first machine and given back with the last one, of whatever driver of this
host; one that was on already is none of ours. A note below /run, which the host forgets as it
forgets the setting, says that it was us: it is written before the effect.

A host that forwards IPv6 is a router, and takes no word of other routers (accept_ra 1): where it
has its own IPv6 by their word, it is not turned on. Nor where it has none as yet: after a boot it
may still be waiting for that word.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.errors import NetworkError
from vmdriver.host.threads import Threads
from vmdriver.network.guard.surroundings import lack_of_ipv6
from vmdriver.network.guard.wire import NETFILTER, ROUTE, attributes, dump, open_socket

_log = logging.getLogger(__name__)
NOTES = Path("/run/vmd-host")
_NAMESPACE = Path("/proc/thread-self/ns/net")
ON, OFF = "1", "0"
_GET_LINK, _GET_CHAIN, _ALIAS, _HOOK = 18, 10 << 8 | 4, 20, 4
_HOOKS = {struct.pack(">I", 2), struct.pack(">I", 4)}
"""Forward and postrouting (linux/netfilter.h)."""
_OURS = "vmdriver_"
_IPV6 = Path("/proc/sys/net/ipv6/conf")


@dataclass(frozen=True)
class Kind:
    """Of forwarding. `families`: of chains that it goes through."""

    name: str
    note: str
    setting: Path
    families: Mapping[int, str]


IPV4 = Kind(
    "IPv4",
    "ip_forward",
    Path("/proc/sys/net/ipv4/ip_forward"),
    {1: "inet", 2: "ip"},
)
IPV6 = Kind("IPv6", "ip6_forward", _IPV6 / "all" / "forwarding", {1: "inet", 10: "ip6"})


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
    kind: Kind = IPV4
    _users: set[str] = field(default_factory=set, init=False)
    _alone: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _lack: str = field(default="", init=False)

    async def need(self, user: str) -> bool:
        """Have it on, until `left` with that name. True: it was off. NetworkError."""
        async with self._alone:
            self._users.add(user)
            return await self._turn_on()

    async def again(self) -> bool:
        """Have it on still. True: it was off. NetworkError."""
        async with self._alone:
            return await self._turn_on()

    @property
    def needed(self) -> bool:
        """Whether anybody has said so and not left."""
        return bool(self._users)

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
        if await self.threads.run(self._is_on):
            return False
        return await self.threads.run(self._set_on)

    async def _give_back(self) -> None:
        if self._users or not self._note.exists():
            return
        await self.threads.run(self._set_off)

    # --- blocking

    @property
    def _note(self) -> Path:
        """Of this network namespace, which another that sees the same /run is not."""
        number = _NAMESPACE.stat().st_ino
        return self.notes / f"{self.kind.note}-{number}"

    def _set_on(self) -> bool:
        with self._translated("turned on"), self._locked():
            if self._lacks_ipv6():
                return False
            if not self._note.exists():
                part = self._note.with_suffix(".part")
                note = {"was": OFF, "chains": self._others().chains}
                part.write_text(json.dumps({**note, "routers": self._routers()}))
                part.replace(self._note)
            self.kind.setting.write_text(ON)
            return True

    def _lacks_ipv6(self) -> bool:
        """Whether the host has none to forward, which is told once."""
        before, self._lack = self._lack, lack_of_ipv6() if self.kind is IPV6 else ""
        if self._lack and self._lack != before:
            _log.warning("IPv6 forwarding stays off: %s", self._lack)
        return bool(self._lack)

    def _routers(self) -> list[str]:
        """Links that are a router's by themselves, of IPv6: with the host they are no more."""
        if self.kind is not IPV6:
            return []
        found = (
            path.parent.name for path in _IPV6.glob("*/forwarding") if _has_on(path)
        )
        return sorted(found)

    def _set_off(self) -> None:
        with self._translated("turned off"), self._locked():
            others = self._others()
            if others.machines or not self._note.exists():
                return
            new = set(others.chains) - self._noted("chains")
            if new:
                # Whoever has them found it on, and would find it off.
                text = "%s forwarding stays on: others forward by now (%s)"
                _log.warning(text, self.kind.name, ", ".join(sorted(new)))
            else:
                self.kind.setting.write_text(OFF)
                for name in self._noted("routers"):
                    with suppress(OSError):  # a link that is gone
                        (_IPV6 / Path(name).name / "forwarding").write_text(ON)
            self._note.unlink()

    def _noted(self, what: str) -> set[str]:
        with suppress(OSError, ValueError, TypeError, KeyError):
            return {str(name) for name in json.loads(self._note.read_text())[what]}
        return set()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all drivers of this host."""
        self.notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(
            self.notes / f"{self.kind.note}.lock",
            os.O_RDWR | os.O_CREAT | os.O_CLOEXEC,
            0o600,
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _others(self) -> _Others:
        with closing(open_socket(ROUTE)) as asked:
            links = dump(asked, _GET_LINK, struct.pack("=B15x", socket.AF_UNSPEC))
        aliases = [dict(attributes(link, 16)).get(_ALIAS, b"") for link in links]
        machines = any(alias.startswith(b"vmdriver/") for alias in aliases)
        with closing(open_socket(NETFILTER)) as asked:
            chains = dump(asked, _GET_CHAIN, struct.pack("=BBH", 0, 0, 0))
        found = (_name_of_others(chain, self.kind.families) for chain in chains)
        return _Others(machines, tuple(sorted(filter(None, found))))

    def _is_on(self) -> bool:
        with self._translated("read"):
            return _has_on(self.kind.setting)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise NetworkError(
                f"{self.kind.name} forwarding of this host cannot be {what}: {error.strerror}",
                detail=str(error),
            ) from error


def forwards(kind: Kind) -> bool:
    """Whether this host does now. A kernel without that version of IP does not. OSError."""
    return kind.setting.exists() and _has_on(kind.setting)


def _has_on(setting: Path) -> bool:
    return setting.read_text().strip() != OFF


def _name_of_others(chain: bytes, families: Mapping[int, str]) -> str:
    """Its name, if it is one of others through which forwarded packets go."""
    known = dict(attributes(chain, 4))
    table, name = (known[key].rstrip(b"\0").decode(errors="replace") for key in (1, 3))
    hook = dict(attributes(known.get(_HOOK, b""))).get(1, b"")
    if chain[0] not in families or hook not in _HOOKS or table.startswith(_OURS):
        return ""
    return f"{families[chain[0]]} {table} {name}"
