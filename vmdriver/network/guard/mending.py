"""A machine's links, addresses and routes had again as they were made; it does not notice. What it
is connected to itself cannot be had again: QEMU has that very tap open.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2.netlink.exceptions import NetlinkError

from vmdriver.errors import NetworkError
from vmdriver.host.confined import netns
from vmdriver.host.threads import alone
from vmdriver.model.plan import NetworkPlan
from vmdriver.network import namespace
from vmdriver.network.netlink import (
    attribute,
    host_mac,
    ignore_missing,
    netlink_in,
    write_sysctls,
)

_MAIN, _LOCAL_TABLE = 254, 255
_ANYWHERE = "0.0.0.0"  # noqa: S104 - a destination
_OWN_RANKS = {0, 32766, 32767}
"""Of the routing rules that every namespace begins with."""


def inside_sysctls(tap: str) -> Mapping[str, str]:
    """The kernel's settings in a machine's namespace: those that links are made with, on the links
    that were made with them.
    """
    late = {**namespace.INSIDE, **namespace.OUTWARDS}
    of_tap = namespace.of_link(tap, namespace.INSIDE)
    return {**late, **of_tap, **namespace.of_link(namespace.OUT, late)}


async def mend_inside(plan: NetworkPlan, mark: str, host: Any) -> None:
    """`host`: netlink of the host's namespace. NetlinkError, OSError; NetworkError where only a new
    start has it again.
    """
    within = plan.lease.tap
    await namespace.find(within, mark)
    await alone("sysctls", _write_inside, within)
    async with netlink_in(within) as inside:
        names = {
            attribute(link, "IFLA_IFNAME"): link["index"]
            async for link in await inside.link("dump")
        }
        if within not in names:
            raise NetworkError(f"its tap {within} is gone")
        if namespace.OUT not in names:
            await namespace.pair(plan, mark, host)
            await alone("sysctls", _write_inside, within)
        for name, index in names.items():
            if name not in {"lo", within, namespace.OUT}:
                with ignore_missing():
                    await inside.link("del", index=index)
        lease, tap = plan.lease, names[within]
        (out,) = await inside.link_lookup(ifname=namespace.OUT)
        routes = {(tap, f"{lease.guest_ip}/32"), (out, f"{_ANYWHERE}/0")}
        await _clear(inside, {tap, out, 1}, {(tap, f"{lease.host_ip}/32")}, routes)
        await _clear_rules(inside)
        await namespace.furnish(plan, mark, inside)


def _write_inside(within: str) -> None:
    with netns.entered(within):
        write_sysctls(
            {
                name: value
                for name, value in inside_sysctls(within).items()
                if Path("/proc/sys/net", name).exists()  # goes with its link
            }
        )


async def _clear(
    netlink: Any,
    links: Collection[int],
    own: Collection[tuple[int, str]],
    routes: Collection[tuple[int, str]],
) -> None:
    """Addresses and routes of these links go, but for their own and those routes: what they are
    made with. Each with its link's index.
    """
    for found in [a async for a in await netlink.addr("dump", family=socket.AF_INET)]:
        index, ip = found["index"], attribute(found, "IFA_ADDRESS")
        length = found["prefixlen"]
        if index in links and (index, f"{ip}/{length}") not in own:
            await netlink.addr("del", index=index, address=ip, prefixlen=length)
    for found in [r async for r in await netlink.route("dump", family=socket.AF_INET)]:
        table = attribute(found, "RTA_TABLE") or found["table"]
        index = attribute(found, "RTA_OIF")
        to = f"{attribute(found, 'RTA_DST') or _ANYWHERE}/{found['dst_len']}"
        made = table == _MAIN and (index, to) in routes
        if index in links and table != _LOCAL_TABLE and not made:
            with _ignore_gone():  # with its address
                await netlink.route(
                    "del", dst=to, table=table, oif=index, scope=found["scope"]
                )


async def _clear_rules(netlink: Any) -> None:
    for rule in [r async for r in await netlink.rule("dump", family=socket.AF_INET)]:
        rank = attribute(rule, "FRA_PRIORITY") or 0
        if rank not in _OWN_RANKS:
            await netlink.rule("del", priority=rank, family=socket.AF_INET)


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
        index, guest = found[0], f"{lease.guest_ip}/32"
        await host.link("set", index=index, ifalias=mark, address=namespace.HOST_MAC)
        addresses = namespace.outside_addresses(lease)
        own = {(index, f"{address}/32") for address in addresses}
        await _clear(host, {index}, own, {(index, guest)})
        await namespace.connect(plan, host)
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
    """Nothing comes or goes through the host's end until it is mended. NetlinkError."""
    for index in await host.link_lookup(ifname=plan.lease.tap):
        await host.link("set", index=index, state="down")
