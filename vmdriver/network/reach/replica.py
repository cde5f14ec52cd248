"""Tries a machine's live rules without touching the machine.

Only QEMU can send at a machine's tap, and what is loaded there is nobody's to change for a test. So
the rules that the kernel has in the machine's namespace are read out, and loaded into a namespace
that is built like it, with taps at both ends that are ours. A packet goes in as the guest would
send it; the kernel does with it what those rules say, and it is seen where it comes out: the same
rules in the same kernel. What the host does after that is not in it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Literal

from vmdriver.errors import CommandError, NetworkError
from vmdriver.host import process
from vmdriver.host.confined import netns
from vmdriver.host.threads import alone
from vmdriver.model.ids import host_mac
from vmdriver.model.plan import NetworkPlan
from vmdriver.network import namespace, rtnetlink
from vmdriver.network.guard.table_prints import INET, Prints, Table
from vmdriver.network.guard.wire import NETFILTER, open_socket
from vmdriver.network.netlink import translated, write_sysctls
from vmdriver.network.reach.explained import Destination
from vmdriver.network.reach.packets import first_frame, seen
from vmdriver.network.rules import nft, walled_rules
from vmdriver.network.rules.shared_rules import table_name

_TUN, _TUNSETIFF, _TAP = "/dev/net/tun", 0x400454CA, 0x1002
_FIRST_PORT, _FRAME = 40000, 2048
_TRIES, _WAIT_S = 3, 0.4
"""The kernel bounds how much ICMP it says."""
_MARK = "replica"
_UNLIMITED = {"ipv4/icmp_ratelimit": "0", "ipv6/icmp/ratelimit": "0"}
_NOBODY = "fd00::2"
"""As whom a guest sends IPv6 that has none of its own."""

Verdict = Literal["leaves", "answered", "refused", "dropped"]


@dataclass(frozen=True)
class Outcome:
    """What the kernel did with the packet. `leads_to`: where it was on its way to when it left, as
    address and port.
    """

    verdict: Verdict
    leads_to: tuple[str, int] | None = None

    @property
    def reached(self) -> bool:
        """Whether the rules let it through."""
        return self.verdict in {"leaves", "answered"}


async def live_rules(within: str) -> str:
    """All that the kernel has in the namespace of that name, as nft writes it. NetworkError."""
    command = ["nsenter", f"--net={netns.path(within)}", "nft", "-s", "list", "ruleset"]
    try:
        listed = await process.run(command, deadline_s=nft.DEADLINE_S)
    except CommandError as error:
        raise NetworkError(
            f"the rules in the network namespace {within} cannot be read: {error}",
            detail=error.detail,
        ) from error
    return listed.stdout.decode()


HostsHalf = Literal["whole", "gone", "changed"]


async def hosts_half(plan: NetworkPlan) -> HostsHalf:
    """Whether the rules in the host's own namespace, which translate addresses, are as they would
    be loaded for that machine, which has a namespace: the kernel is given them once more, in
    another one. NetworkError.
    """
    table = Table(INET, table_name(plan.lease.tap))
    with translated("the host's rules"):
        mark = await namespace.owner(plan.lease.tap) or ""
        there = await alone("prints", _print, table)
        if there is None:
            return "gone"
        within = await alone("netns", netns.make)
        try:
            await _load(walled_rules.outside(plan, mark), within)
            wanted = await alone("prints", _print_in, within, table)
        finally:
            os.close(within)
    return "whole" if there == wanted else "changed"


def _print(table: Table) -> bytes | None:
    with closing(open_socket(NETFILTER)) as asked:
        return Prints(asked).of([table]).get(table)


def _print_in(within: int, table: Table) -> bytes | None:
    with netns.entered(f"/proc/{os.getpid()}/fd/{within}"):
        return _print(table)


async def outcomes(
    plan: NetworkPlan, rules: str, destinations: Sequence[Destination]
) -> list[Outcome]:
    """What those rules make of the first packet to each of them. NetworkError."""
    with translated("a network namespace to try rules in"):
        async with _built(plan) as replica:
            await _load(rules, replica.namespace)
            return [
                await alone("replica", replica.send, to, _FIRST_PORT + number)
                for number, to in enumerate(destinations)
            ]


@asynccontextmanager
async def _built(plan: NetworkPlan) -> AsyncIterator[_Replica]:
    replica = _Replica(plan)
    try:
        await alone("replica", replica.build)
        yield replica
    finally:
        replica.close()


async def _load(rules: str, within: int) -> None:
    where = f"--net=/proc/{os.getpid()}/fd/{within}"
    try:
        await process.run(
            ["nsenter", where, "nft", "-f", "-"],
            stdin=rules.encode(),
            deadline_s=nft.DEADLINE_S,
        )
    except CommandError as error:
        raise NetworkError(
            f"the machine's rules could not be loaded for a trial: {error}",
            detail=error.detail,
        ) from error


@dataclass
class _Replica:
    """A namespace without a name: it goes when this is closed."""

    plan: NetworkPlan
    namespace: int = field(default=-1, init=False)
    _open: list[int | socket.socket] = field(default_factory=list, init=False)
    _tap: int = field(default=-1, init=False)
    _out: int = field(default=-1, init=False)
    _names: list[socket.socket] = field(default_factory=list, init=False)

    def build(self) -> None:
        """In a thread that does nothing else. OSError, NetworkError."""
        plan, lease = self.plan, self.plan.lease
        self.namespace = netns.make()
        self._open.append(self.namespace)
        made_with = namespace.made_with(plan)
        write_sysctls({**made_with, **_UNLIMITED})
        self._tap = self._opened_tap(lease.tap)
        write_sysctls(namespace.OUTWARDS)
        self._out = self._opened_tap(namespace.OUT)
        write_sysctls(namespace.of_link(lease.tap, made_with))
        with rtnetlink.opened() as inside:
            namespace.furnish_here(plan, _MARK, inside)
        if plan.asks_host:
            self._listen(lease.host_ip)

    def _opened_tap(self, name: str) -> int:
        tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        self._open.append(tap)
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP))
        return tap

    def _listen(self, address: str) -> None:
        """Where the driver answers in the machine's own."""
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            one = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
            self._open.append(one)
            one.bind((address, 53))
            if kind is socket.SOCK_STREAM:
                one.listen()
            self._names.append(one)

    def close(self) -> None:
        """All of it goes."""
        for one in self._open:
            if isinstance(one, int):
                os.close(one)
            else:
                one.close()
        self._open.clear()

    def send(self, to: Destination, port: int) -> Outcome:
        """As the guest would, from that port. Blocking."""
        lease, six = self.plan.lease, self.plan.ipv6
        macs = (host_mac(lease.mac), lease.mac)
        own = lease.guest_ip
        if ":" in to.address:
            own = _NOBODY if six is None else six.guest_ip
        frame = first_frame(to, source=own, port=port, macs=macs)
        for _ in range(_TRIES):
            os.write(self._tap, frame)
            outcome = self._seen_within(port, _WAIT_S)
            if outcome is not None:
                return outcome
        return Outcome("dropped")

    def _seen_within(self, port: int, wait_s: float) -> Outcome | None:
        answering = {one.fileno(): one for one in self._names}
        watched = [self._tap, self._out, *answering]
        end = time.monotonic() + wait_s
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select(watched, [], [], left)
            for one in ready:
                taken = answering.get(one)
                outcome = (
                    self._frame(one, port) if taken is None else _taken(taken, port)
                )
                if outcome is not None:
                    return outcome
        return None

    def _frame(self, tap: int, port: int) -> Outcome | None:
        packet = seen(os.read(tap, _FRAME))
        if packet is None or port not in packet.ports:
            return None
        if tap == self._out:
            return Outcome("leaves", (packet.destination, packet.ports[1]))
        if packet.refuses:
            return Outcome("refused")
        return Outcome("answered") if packet.answers else None


def _taken(names: socket.socket, port: int) -> Outcome | None:
    """What came to where the driver answers in the machine's own."""
    if names.type == socket.SOCK_STREAM:
        names.accept()[0].close()
        return None  # that it is taken, a frame says
    _, (_, source) = names.recvfrom(_FRAME)
    return Outcome("answered") if source == port else None
