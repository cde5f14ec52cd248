"""A machine's own network namespace, and the way out of it.

    guest ==tap== [ namespace: guest's gateway, rules ] ==veth== [ host: address translation ]

Namespace, tap and the host's end of the pair have one name, which the lease says. Nothing on the
pair is asked for or learnt: addresses of both ends are fixed and known. The namespace bears
its mark as its loopback's alias, and has no name before it is whole: what a killed driver
was making goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from vmdriver.errors import NetworkError, NotOursError
from vmdriver.host.confined import netns
from vmdriver.host.threads import alone
from vmdriver.model.ids import host_mac, is_anothers
from vmdriver.model.ipv6 import Ipv6
from vmdriver.model.plan import Lease, NetworkPlan
from vmdriver.network import rtnetlink
from vmdriver.network.netlink import (
    attribute,
    netlink,
    netlink_in,
    write_sysctls,
)
from vmdriver.network.shaping import shape

OUT = "out"
"""The pair's end in the namespace."""
OUT_MAC, HOST_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"
_LOOPBACK = 1
_TUN = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TAP_WITHOUT_HEADER = 0x400454CA, 0x400454CB, 0x1002
"""linux/if_tun.h: IFF_TAP | IFF_NO_PI."""
INSIDE: Mapping[str, str] = {
    "ipv4/ip_forward": "1",  # first: it sets others
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/default/accept_redirects": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/conf/all/accept_source_route": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "1",
    "ipv4/conf/all/accept_local": "0",
    "ipv4/conf/default/accept_local": "0",
    "ipv4/conf/all/route_localnet": "0",
    "ipv4/conf/default/route_localnet": "0",
    "ipv4/conf/all/proxy_arp": "0",
    "ipv4/conf/default/proxy_arp": "0",
    "ipv4/conf/default/arp_ignore": "1",
}
_WITHOUT_IPV6: Mapping[str, str] = {
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
}
_WITH_IPV6: Mapping[str, str] = {
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
    # Nothing is learnt, asked for or announced, and there are no addresses but those given.
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/accept_redirects": "0",
    "ipv6/conf/default/accept_source_route": "-1",
    "ipv6/conf/default/addr_gen_mode": "1",
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/proxy_ndp": "0",
    "ipv6/conf/all/proxy_ndp": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/all/disable_ipv6": "0",  # last: by then links know what not to do
}
OUTWARDS: Mapping[str, str] = {
    # What the host says to the guest comes from the gateway's address, which is in here too.
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/default/accept_local": "1",
}
"""Behind the tap, before the pair's end."""


def made_with(plan: NetworkPlan) -> Mapping[str, str]:
    """The kernel's settings before there is any link: a new namespace has the host's values."""
    return {**INSIDE, **(_WITHOUT_IPV6 if plan.ipv6 is None else _WITH_IPV6)}


def settings(plan: NetworkPlan) -> Mapping[str, str]:
    """The same once all links are there: those that they are made with, on the links that were made
    with them.
    """
    tap, made = plan.lease.tap, made_with(plan)
    late = {**made, **OUTWARDS}
    found = {**late, **of_link(tap, made), **of_link(OUT, late)}
    return dict(sorted(found.items(), key=lambda one: "disable_ipv6" in one[0]))


def of_link(link: str, made_with: Mapping[str, str]) -> dict[str, str]:
    """What a link has that is made with these."""
    return {
        name.replace("/default/", f"/{link}/"): value
        for name, value in made_with.items()
        if "/default/" in name
    }


class _Begun:
    """A new namespace that has no name yet."""

    def __init__(self) -> None:
        self.namespace: int | None = None

    def begin(self, plan: NetworkPlan, mark: str) -> int:
        """Make it, with all that is in it and the pair's other end, in a thread that does nothing
        else. A tap that is moved in later is not. OSError, NetworkError.
        """
        tap = None if plan.moved else plan.lease.tap
        with rtnetlink.opened() as host:
            self.namespace = netns.make()
            write_sysctls(made_with(plan))
            if tap is not None:
                _make_tap(tap)
            write_sysctls(OUTWARDS)
            if tap is not None:
                # It has followed the default.
                write_sysctls(of_link(tap, made_with(plan)))
            _pair(plan.lease.tap, mark, self.namespace, host)
            # Whoever looks whether the block is free finds it from now on.
            rtnetlink.do(host, *_addressed(host, plan.lease))
        with rtnetlink.opened() as inside:
            furnish_here(plan, mark, inside)
        return self.namespace

    def close(self) -> None:
        """Without a name it goes now."""
        if self.namespace is not None:
            os.close(self.namespace)


def _make_tap(name: str) -> None:
    """In the namespace that this thread is in, as only a system call can. Nobody owns it: who may
    not administer the namespace cannot open it.
    """
    device = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = struct.pack("16sH22x", name.encode(), _TAP_WITHOUT_HEADER)
        fcntl.ioctl(device, _TUNSETIFF, request)
        fcntl.ioctl(device, _TUNSETPERSIST, 1)
    finally:
        os.close(device)


async def make(plan: NetworkPlan, mark: str) -> None:
    """The namespace, its tap, and its link on the host, which is down: nothing comes or goes before
    it is connected. NetlinkError, OSError, NetworkError.
    """
    name = plan.lease.tap
    begun = _Begun()  # so that nothing of it is lost when this is cancelled
    try:
        namespace = await alone("netns", begun.begin, plan, mark)
        netns.give_name(namespace, name)
    finally:
        begun.close()
    if plan.mbit_s is not None:
        await limit_rate(plan)


def _pair(name: str, mark: str, namespace: int, host: socket.socket) -> None:
    made = rtnetlink.pair(name, HOST_MAC, OUT, OUT_MAC, namespace)
    rtnetlink.do(host, made)
    index = rtnetlink.there(host, name)
    rtnetlink.do(host, rtnetlink.changed_link(index, alias=mark))


async def pair(plan: NetworkPlan, mark: str) -> None:
    """The way out of a namespace that has none any more, down and without addresses. OSError."""
    await alone("pair", _paired, plan.lease.tap, mark)


def _paired(name: str, mark: str) -> None:
    namespace = os.open(netns.path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        with rtnetlink.opened() as host:
            _pair(name, mark, namespace, host)
    finally:
        os.close(namespace)


async def furnish(plan: NetworkPlan, mark: str) -> None:
    """Have the links in there up, with addresses, routes and neighbours, whatever of that there is.
    NetlinkError, OSError, NetworkError.
    """
    await limit_rate(plan)
    await alone("furnish", _furnished, plan, mark)


def _furnished(plan: NetworkPlan, mark: str) -> None:
    with netns.entered(plan.lease.tap), rtnetlink.opened() as inside:
        furnish_here(plan, mark, inside)


def furnish_here(plan: NetworkPlan, mark: str, inside: socket.socket) -> None:
    """The same where that socket is. OSError, NetworkError."""
    lease, out = plan.lease, rtnetlink.there(inside, OUT)
    requests = [
        rtnetlink.changed_link(_LOOPBACK, alias=mark),
        rtnetlink.changed_link(out, up=True),
        rtnetlink.neighbour(out, lease.uplink_ip, HOST_MAC),
    ]
    tap = rtnetlink.index_of(inside, lease.tap)
    if tap is not None:  # else it is moved in later
        requests += [
            # Always the same address: a guest that comes back from memory knows it.
            rtnetlink.changed_link(tap, mac=host_mac(lease.mac), up=True),
            rtnetlink.address(tap, lease.host_ip, 32),
            rtnetlink.route(tap, lease.guest_ip),
            rtnetlink.route(out, gateway=lease.uplink_ip),
            rtnetlink.neighbour(tap, lease.guest_ip, lease.mac),
        ]
    if plan.ipv6 is not None:
        requests += _furnished_ipv6(plan, plan.ipv6, out, tap)
    rtnetlink.do(inside, *requests)


def _furnished_ipv6(
    plan: NetworkPlan, six: Ipv6, out: int, tap: int | None
) -> list[rtnetlink.Request]:
    """What the machine's namespace is has an address only on the tap: it says from there who may
    not pass.
    """
    requests = [rtnetlink.neighbour(out, six.uplink_ip, HOST_MAC)]
    if tap is not None:
        requests += [
            rtnetlink.address(tap, six.host_ip, 128),
            rtnetlink.route(tap, six.guest_ip),
            rtnetlink.route(out, gateway=six.uplink_ip),
            rtnetlink.neighbour(tap, six.guest_ip, plan.lease.mac),
        ]
    return requests


async def give_ipv6(plan: NetworkPlan, mark: str) -> None:
    """Have what is there without it have it too. NetlinkError, OSError, NetworkError."""
    await settle(plan)
    await furnish(plan, mark)


async def settle(plan: NetworkPlan) -> None:
    """Have the kernel's settings in there, as far as what they are of is there. OSError,
    NetworkError.
    """
    await alone("sysctls", _settled, plan)


def _settled(plan: NetworkPlan) -> None:
    with netns.entered(plan.lease.tap):
        write_sysctls(
            {
                name: value
                for name, value in settings(plan).items()
                if Path("/proc/sys/net", name).exists()  # goes with its link
            }
        )


async def has_tap(plan: NetworkPlan) -> bool:
    """Whether the tap is in the namespace. NetlinkError, OSError."""
    async with netlink_in(plan.lease.tap) as inside:
        return bool(await inside.link_lookup(ifname=plan.lease.tap))


async def connect(plan: NetworkPlan) -> None:
    """Give the link on the host its addresses, and bring it up, whatever of that there is.
    NetlinkError, OSError, NetworkError.
    """
    if plan.mbit_s is not None:
        async with netlink() as host:
            index = (await host.link_lookup(ifname=plan.lease.tap))[0]
            await shape(host, index, plan.mbit_s)
    await alone("connect", _connect, plan)


def _connect(plan: NetworkPlan) -> None:
    lease = plan.lease
    with rtnetlink.opened() as host:
        index = rtnetlink.there(host, lease.tap)
        rtnetlink.do(
            host,
            *_addressed(host, lease),
            rtnetlink.changed_link(index, up=True),
            # What the host itself says (no route, too large) comes from an address that the guest
            # takes for one: the other is its network's broadcast.
            rtnetlink.route(index, lease.guest_ip, source=lease.host_ip),
            rtnetlink.neighbour(index, lease.guest_ip, OUT_MAC),
            *_connected_ipv6(plan.ipv6, index),
        )


def _connected_ipv6(six: Ipv6 | None, index: int) -> list[rtnetlink.Request]:
    if six is None:
        return []
    return [
        rtnetlink.address(index, six.uplink_ip, 128),
        rtnetlink.route(index, six.guest_ip, source=six.uplink_ip),
        rtnetlink.neighbour(index, six.guest_ip, OUT_MAC),
    ]


def _addressed(host: socket.socket, lease: Lease) -> list[rtnetlink.Request]:
    index = rtnetlink.there(host, lease.tap)
    return [rtnetlink.address(index, ip, 32) for ip in outside_addresses(lease)]


def outside_addresses(lease: Lease) -> tuple[str, str]:
    """Of the link on the host."""
    return lease.uplink_ip, lease.host_ip


async def limit_rate(plan: NetworkPlan) -> None:
    """Bound what the machine sends. NetlinkError, OSError, NetworkError."""
    async with netlink_in(plan.lease.tap) as inside:
        out = (await inside.link_lookup(ifname=OUT))[0]
        await shape(inside, out, plan.mbit_s)


async def owner(name: str) -> str | None:
    """The mark of the namespace of that name; None: it has none. NetlinkError, OSError."""
    async with netlink_in(name) as inside:
        return await _mark(inside)


async def _mark(inside: Any) -> str | None:
    (loopback,) = await inside.link("get", index=_LOOPBACK)
    found = attribute(loopback, "IFLA_IFALIAS")
    return None if found is None else str(found)


async def find(name: str, mark: str) -> None:
    """Where a machine's namespace has lost its name (somebody removed it, or an earlier driver had
    mounts of its own), have it again: a process is in there. NetworkError: there is none.
    """
    if netns.is_there(name):
        return
    for file in await asyncio.to_thread(netns.of_processes):
        with contextlib.suppress(OSError, NetlinkError):  # its process has ended
            async with netlink_in(file) as inside:
                if await _mark(inside) != mark:
                    continue
            with file.open("rb") as there:
                netns.forget(name)
                netns.give_name(there.fileno(), name)
            return
    raise NetworkError(f"the network namespace {name} of a machine is gone")


async def reassign(name: str, mark: str) -> None:
    """Give it another mark. OSError."""
    await alone("mark", _reassigned, name, mark)


def _reassigned(name: str, mark: str) -> None:
    with netns.entered(name), rtnetlink.opened() as inside:
        rtnetlink.do(inside, rtnetlink.changed_link(_LOOPBACK, alias=mark))


async def remove(name: str, mark: str, *, made: bool) -> None:
    """Remove the namespace of that name, if it is there and carries that mark, and all links in it
    under whatever names: the host's end goes with the way out. `made`: as `is_anothers` has it.
    OSError, NotOursError.
    """
    if netns.is_there(name):
        await alone("netns", _remove_links, name, mark, made)
    netns.forget(name)


def _remove_links(name: str, mark: str, made: bool) -> None:
    with netns.entered(name), rtnetlink.opened() as inside:
        found = rtnetlink.alias_of(inside, _LOOPBACK)
        if is_anothers(found, mark, made=made):
            raise NotOursError(
                f"network namespace {name} is marked {found!r} and is left alone"
            )
        for link in rtnetlink.links(inside):
            if link.index != _LOOPBACK and link.kind in {"tun", "veth"}:
                rtnetlink.remove(inside, link.index)
