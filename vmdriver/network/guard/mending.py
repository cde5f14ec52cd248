"""A machine's links, addresses and routes had again as they were made; it does not notice. What it
is connected to itself cannot be had again: QEMU has that very tap open.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from vmdriver.errors import NetworkError
from vmdriver.model.ids import host_mac
from vmdriver.model.plan import NetworkPlan
from vmdriver.network import namespace
from vmdriver.network.netlink import (
    attribute,
    ignore_missing,
    kind,
    netlink_in,
)
from vmdriver.network.shaping import clear_queues, shape

_MAIN, _LOCAL_TABLE = 254, 255
_LOOPBACK, _MTU, _NO_ARP, _PERMANENT = 1, 1500, 0x80, 0x80
_OWN_RULES = {0: 255, 32766: 254, 32767: 253}
_OWN_RULES_IPV6 = {0: 255, 32766: 254}
_GROUPS = {4, 5}
"""Kinds of routes: to the nearest of several, to all of a group."""
_BY_KERNEL = 2


async def mend_inside(plan: NetworkPlan, mark: str, host: Any) -> None:
    """`host`: netlink of the host's namespace. NetlinkError, OSError; NetworkError where only a new
    start has it again.
    """
    within = plan.lease.tap
    await namespace.find(within, mark)
    await namespace.settle(plan)
    async with netlink_in(within) as inside:
        tap = await _mend_tap(within, inside)
        await _mend_pair(plan, mark, inside, host)
        await inside.link("set", index=_LOOPBACK, state="down")
        await namespace.settle(plan)
        (out,) = await inside.link_lookup(ifname=namespace.OUT)
        links = {tap, out, _LOOPBACK}
        for ways in _ways(plan):
            own = {(tap, ways.host_ip)}
            routes = {(tap, ways.guest_ip), (out, ways.anywhere)}
            await _clear(inside, ways, links, own, routes)
            known = {(tap, ways.guest_ip), (out, ways.uplink_ip)}
            await _clear_neighbours(inside, ways, links, known)
            await _clear_rules(inside, ways)
        # A mark is on the loopback, and on a tap that was made outside.
        for index, alias in ((tap, mark if plan.moved else ""), (out, "")):
            await inside.link("set", index=index, ifalias=alias)
            await clear_queues(inside, index)
        await namespace.furnish(plan, mark)


async def _mend_tap(name: str, inside: Any) -> int:
    """Its index. QEMU has that very one open, whatever it is called by now."""
    taps = [
        link
        async for link in await inside.link("dump")
        if kind(link) == "tun" or attribute(link, "IFLA_IFNAME") == name
    ]
    if len(taps) != 1:
        raise NetworkError(f"its tap {name} is gone")
    (tap,) = taps
    index: int = tap["index"]
    if attribute(tap, "IFLA_IFNAME") != name:
        await inside.link("set", index=index, state="down")
        await inside.link("set", index=index, ifname=name)
    if attribute(tap, "IFLA_MASTER"):
        await inside.link("set", index=index, master=0)
    await inside.link("set", index=index, mtu=_MTU, flags=0, change=_NO_ARP)
    return index


async def _mend_pair(plan: NetworkPlan, mark: str, inside: Any, host: Any) -> None:
    """One of which anything is not as it was made is made anew, wherever its ends are. No other
    link is in there.
    """
    name, out = plan.lease.tap, namespace.OUT
    within = [link async for link in await inside.link("dump")]
    ends = [link for link in within if attribute(link, "IFLA_IFNAME") == out]
    outside = [
        link
        async for link in await host.link("dump")
        if attribute(link, "IFLA_IFALIAS") == mark and kind(link) == "veth"
    ]
    named = [link for link in outside if attribute(link, "IFLA_IFNAME") == name]
    whole = bool(
        ends
        and named
        and attribute(ends[0], "IFLA_LINK") == named[0]["index"]
        and _as_made(ends[0], namespace.OUT_MAC)
        and _as_made(named[0], namespace.HOST_MAC)
    )
    stay = {"lo", name, out} if whole else {"lo", name}
    for link in within:
        if attribute(link, "IFLA_IFNAME") not in stay:
            with ignore_missing():
                await inside.link("del", index=link["index"])
    if whole:
        return
    for link in outside:
        with ignore_missing():  # mostly gone with its other end
            await host.link("del", index=link["index"])
    await namespace.pair(plan, mark)


def _as_made(link: Any, address: str) -> bool:
    xdp = attribute(link, "IFLA_XDP")
    return (
        attribute(link, "IFLA_ADDRESS") == address
        and attribute(link, "IFLA_MTU") == _MTU
        and not attribute(link, "IFLA_MASTER")
        and not link["flags"] & _NO_ARP
        and not (xdp is not None and xdp.get_attr("IFLA_XDP_ATTACHED"))
    )


@dataclass(frozen=True)
class _Ways:
    """A machine's addresses of one version of IP."""

    family: int
    length: int
    """Bits of an address."""
    anywhere: str
    host_ip: str
    guest_ip: str
    uplink_ip: str
    rules: Mapping[int, int]
    """Ranks and tables of the routing rules that every namespace begins with."""

    def network(self, to: str) -> str:
        """A network as it is; an address as one of it alone."""
        return to if "/" in to else f"{to}/{self.length}"


def _ways(plan: NetworkPlan) -> Iterator[_Ways]:
    lease, six = plan.lease, plan.ipv6
    four = (lease.host_ip, lease.guest_ip, lease.uplink_ip)
    yield _Ways(socket.AF_INET, 32, "0.0.0.0/0", *four, _OWN_RULES)
    if six is not None:
        own = (six.host_ip, six.guest_ip, six.uplink_ip)
        yield _Ways(socket.AF_INET6, 128, "::/0", *own, _OWN_RULES_IPV6)


async def _clear(
    netlink: Any,
    ways: _Ways,
    links: Collection[int],
    own: Collection[tuple[int, str]],
    routes: Collection[tuple[int, str]],
) -> None:
    """Addresses and routes of these links go, but for their own and those routes: what they are
    made with. Each with its link's index; an address stands for a network of it alone.
    """
    family = ways.family
    mine, leading = ({(i, ways.network(to)) for i, to in x} for x in (own, routes))
    for found in [a async for a in await netlink.addr("dump", family=family)]:
        index, ip = found["index"], attribute(found, "IFA_ADDRESS")
        length = found["prefixlen"]
        if index in links and (index, f"{ip}/{length}") not in mine:
            await netlink.addr("del", index=index, address=ip, prefixlen=length)
    for found in [r async for r in await netlink.route("dump", family=family)]:
        table = attribute(found, "RTA_TABLE") or found["table"]
        index, length = attribute(found, "RTA_OIF"), found["dst_len"]
        to = f"{attribute(found, 'RTA_DST') or ways.anywhere.split('/')[0]}/{length}"
        made = (index, to) in (mine if table == _LOCAL_TABLE else leading)
        if index not in links or (made and table in {_MAIN, _LOCAL_TABLE}):
            continue
        if family == socket.AF_INET6 and found["type"] in _GROUPS:
            continue  # the kernel has them for every link
        where = {"table": table, "oif": index, "type": found["type"]}
        with _ignore_gone():  # with its address
            scope = {"scope": found["scope"]} if family == socket.AF_INET else {}
            await netlink.route("del", dst=to, family=family, **scope, **where)


async def _clear_neighbours(
    netlink: Any,
    ways: _Ways,
    links: Collection[int],
    own: Collection[tuple[int, str]],
) -> None:
    """The same of what somebody has said of neighbours."""
    found = [n async for n in await netlink.neigh("dump", family=ways.family)]
    for one in found:
        index, address = one["ifindex"], attribute(one, "NDA_DST")
        said = one["state"] & _PERMANENT and index in links
        if said and (index, address) not in own:
            await netlink.neigh("del", ifindex=index, dst=address)


async def _clear_rules(netlink: Any, ways: _Ways) -> None:
    missing, family = dict(ways.rules), ways.family
    for rule in [r async for r in await netlink.rule("dump", family=family)]:
        rank = attribute(rule, "FRA_PRIORITY") or 0
        if rank in missing:
            del missing[rank]
        else:
            await netlink.rule("del", priority=rank, family=family)
    for rank, table in missing.items():
        made = {"table": table, "protocol": _BY_KERNEL, "action": "to_tbl"}
        await netlink.rule("add", priority=rank, family=family, **made)


@contextmanager
def _ignore_gone() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.ESRCH:
            raise


async def mend_outside(plan: NetworkPlan, mark: str, host: Any) -> None:
    """The host's end: of the pair that leads into a namespace, or the tap itself. NetlinkError;
    NetworkError where only a new start has it again.
    """
    lease = plan.lease
    found = await host.link_lookup(ifname=lease.tap)
    if not found:
        raise NetworkError(f"its link {lease.tap} is gone")
    if plan.namespace is not None:
        index = found[0]
        await host.link("set", index=index, ifalias=mark, address=namespace.HOST_MAC)
        for ways in _ways(plan):
            own = {(index, ways.uplink_ip)}
            if ways.family == socket.AF_INET:
                own = {(index, ip) for ip in namespace.outside_addresses(lease)}
            guest = {(index, ways.guest_ip)}
            await _clear(host, ways, {index}, own, guest)
            await _clear_neighbours(host, ways, {index}, guest)
        await clear_queues(host, index)
        await shape(host, index, plan.mbit_s)
        await namespace.connect(plan)
        return
    await host.link("set", index=found[0], ifalias=mark, address=host_mac(lease.mac))
    await host.addr(
        "replace",
        index=found[0],
        address=lease.host_ip,
        prefixlen=lease.prefix_length,
    )
    await host.link("set", index=found[0], state="up")


async def shut(plan: NetworkPlan, host: Any) -> None:
    """Nothing comes or goes until it is mended, wherever the host's end is by now. NetlinkError,
    OSError, NetworkError.
    """
    for index in await host.link_lookup(ifname=plan.lease.tap):
        await host.link("set", index=index, state="down")
    if plan.namespace is None:
        return
    async with netlink_in(plan.namespace) as inside:
        for index in await inside.link_lookup(ifname=namespace.OUT):
            await inside.link("set", index=index, state="down")
