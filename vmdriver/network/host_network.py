"""Implements lifecycle.ports.host.Network: taps and namespaces with netlink, tables with nft."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmdriver.errors import CommandError, NetworkError, NotOursError, Unavailable
from vmdriver.host import process
from vmdriver.host.confined import netns
from vmdriver.host.retry import tried
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Found, Ownership, Taken
from vmdriver.model.ids import host_mac, is_anothers, parse_mark
from vmdriver.model.ipv6 import WayToIpv6
from vmdriver.model.plan import NetworkPlan, outer_tap
from vmdriver.network import namespace, rtnetlink
from vmdriver.network.forwarding import IPV6, NOTES, Forwarding
from vmdriver.network.guard import mending, surroundings
from vmdriver.network.netlink import (
    attribute,
    netlink,
    translated,
    write_sysctls,
)
from vmdriver.network.rules import nft
from vmdriver.network.rules import shared_rules as ruleset
from vmdriver.network.rules.machine_rules import Rules, rules_of
from vmdriver.network.shaping import shape

_log = logging.getLogger(__name__)
_OURS = "vmd"
"""What names of our interfaces and namespaces begin with."""


def _check_free(plan: NetworkPlan) -> None:
    """NetworkError where an interface has an address of the lease's block: the kernel would take it
    twice and send what is for one sandbox to another, such as one of a second driver with the
    same pool; or where there is one of that name, which is somebody else's.
    """
    lease = plan.lease
    block = ipaddress.IPv4Network(
        f"{lease.host_ip}/{lease.prefix_length}", strict=False
    )
    with rtnetlink.opened() as host:
        if rtnetlink.index_of(host, lease.tap) is not None:
            # Adding a tap that exists succeeds silently, so look first.
            raise NetworkError(f"an interface {lease.tap} exists and is not ours")
        for address, label in rtnetlink.addresses(host):
            if address in block:
                raise _in_use(lease.host_ip, label, "address_pool")
        six = [] if plan.ipv6 is None else rtnetlink.addresses_ipv6(host)
        names = {link.index: link.name for link in rtnetlink.links(host)} if six else {}
    for address6, index, _ in six:
        if plan.ipv6 is not None and str(address6) == plan.ipv6.uplink_ip:
            name = names.get(index, "a link")
            raise _in_use(plan.ipv6.uplink_ip, name, "address_pool_ipv6")


def _in_use(address: str, where: str, setting: str) -> NetworkError:
    return NetworkError(
        f"{address} is in use on this host ({where})",
        reason="AddressInUse",
        resolution=f"give each driver of this host an {setting} of its own, or "
        "stop what has the address",
    )


def outside_sysctls(plan: NetworkPlan) -> Mapping[str, str]:
    """What the kernel does with the host's end of a machine's network."""
    link = plan.lease.tap
    six = {"disable_ipv6": "1"}
    if plan.ipv6 is not None:
        # There are no addresses but those given, and nothing is learnt or announced.
        six = dict.fromkeys(("accept_ra", "autoconf", "accept_redirects"), "0")
        six |= {"accept_dad": "0", "addr_gen_mode": "1", "disable_ipv6": "0"}
    return {
        # Packets from this link may be sent on to 127.0.0.1; the firewall table lets
        # only the ports of host_access in.
        f"ipv4/conf/{link}/route_localnet": "1",
        f"ipv4/conf/{link}/rp_filter": "1",
        f"ipv4/conf/{link}/accept_redirects": "0",
        f"ipv4/conf/{link}/send_redirects": "0",
        **{f"ipv6/conf/{link}/{name}": value for name, value in six.items()},
    }


def _remove_links(tap: str, mark: str, made: bool) -> None:
    """Those that bear the mark, whatever their name is by now, and the names. NotOursError."""
    foreign = ""
    with rtnetlink.opened() as host:
        for link in rtnetlink.links(host):
            if link.alias != mark and link.name not in {tap, outer_tap(tap)}:
                continue
            if is_anothers(link.alias, mark, made=made):
                foreign = (
                    f"interface {link.name} is marked {link.alias!r} and is left alone"
                )
                continue
            rtnetlink.remove(host, link.index)
    if foreign:
        raise NotOursError(foreign)


def _taken() -> Taken:
    with rtnetlink.opened() as host:
        names = frozenset(link.name for link in rtnetlink.links(host))
        found = frozenset(str(address) for address, _ in rtnetlink.addresses(host))
    return Taken(names, found)


def _reassigned(tap: str, mark: str) -> None:
    with rtnetlink.opened() as host:
        index = rtnetlink.there(host, tap)
        rtnetlink.do(host, rtnetlink.changed_link(index, alias=mark))


class HostNetwork:
    """Taps and tables of one driver instance."""

    def __init__(
        self,
        instance: str,
        owner: Ownership,
        threads: Threads,
        address_pool: str,
        notes: Path = NOTES,
        ipv6_pool: str = "",
    ) -> None:
        """`notes`: where it is noted what of the whole host was changed. `ipv6_pool`: "" where
        machines have no IPv6.
        """
        self._instance = instance
        self._owner = owner
        self._threads = threads
        self._pools = (address_pool, *((ipv6_pool,) if ipv6_pool else ()))
        self._forwarding = Forwarding(threads, notes)
        self._forwarding_ipv6 = Forwarding(threads, notes, IPV6)
        self._ipv6 = bool(ipv6_pool)
        """Whether there are machines with it, or may be."""

    # --- taps

    async def make_tap(self, plan: NetworkPlan, mark: str) -> None:
        """In the host's own namespace it belongs to QEMU's user. From another one nothing comes or
        goes before `connect`.
        """
        tap = plan.lease.tap
        await self._remove(tap, mark, made=False)
        await self._forwarding.need(tap)
        with translated(f"tap {tap}"):
            await self._threads.run(_check_free, plan)
            if plan.namespace is None:
                async with netlink() as host:
                    await self._make_bare_tap(plan, mark, host)
                return
            await namespace.make(plan, mark)
            await self._configure(plan)

    async def connect(self, plan: NetworkPlan) -> None:
        """Bring the way out of its namespace up, if it has one: its rules are in force. May be
        repeated. NetworkError.
        """
        if plan.namespace is None:
            return
        await self._forward_ipv6(plan)
        with translated(f"tap {plan.lease.tap}"):
            await namespace.connect(plan)

    async def _forward_ipv6(self, plan: NetworkPlan) -> None:
        if plan.ipv6 is not None:
            await self._forwarding_ipv6.need(plan.lease.tap)

    async def _make_bare_tap(self, plan: NetworkPlan, mark: str, host: Any) -> None:
        lease = plan.lease
        await host.link(
            "add",
            ifname=lease.tap,
            kind="tuntap",
            mode="tap",
            uid=self._owner.uid,
            gid=self._owner.gid,
        )
        index = (await host.link_lookup(ifname=lease.tap))[0]
        # Always the same address: a guest that comes back from memory knows it.
        await host.link("set", index=index, ifalias=mark, address=host_mac(lease.mac))
        await shape(host, index, plan.mbit_s)
        await self._configure(plan)
        await host.addr(
            "add", index=index, address=lease.host_ip, prefixlen=lease.prefix_length
        )
        await host.link("set", index=index, state="up")

    async def _configure(self, plan: NetworkPlan) -> None:
        await self._threads.run(write_sysctls, outside_sysctls(plan))

    async def give_ipv6(self, plan: NetworkPlan, mark: str) -> None:
        """Have a tap that is there without it have it too. NetworkError."""
        with translated(f"tap {plan.lease.tap}"):
            await namespace.give_ipv6(plan, mark)
            await self._configure(plan)

    async def reassign_tap(self, tap: str, mark: str) -> None:
        with translated(f"tap {tap}"):
            if netns.is_there(tap):
                await namespace.reassign(tap, mark)
            await self._threads.run(_reassigned, tap, mark)

    async def limit_rate(self, plan: NetworkPlan) -> None:
        tap = plan.lease.tap
        with translated(f"tap {tap}"):
            async with netlink() as host:
                index = (await host.link_lookup(ifname=tap))[0]
                await shape(host, index, plan.mbit_s)
            if plan.namespace is not None:
                await namespace.limit_rate(plan)

    async def remove_tap(self, tap: str, mark: str, *, made: bool = False) -> None:
        try:
            await self._remove(tap, mark, made=made)
        finally:
            await tried(_log, self._forwarding.left(tap), "IPv4 forwarding")
            await tried(_log, self._forwarding_ipv6.left(tap), "IPv6 forwarding")

    async def _remove(self, tap: str, mark: str, *, made: bool) -> None:
        with translated(f"tap {tap}"):
            try:
                await namespace.remove(tap, mark, made=made)
            finally:
                await self._threads.run(_remove_links, tap, mark, made)

    async def reset_connections(self, guest_ip: str) -> None:
        address = str(ipaddress.IPv4Address(guest_ip))
        try:
            # -K: sock_diag's SOCK_DESTROY; a kernel without it just lists them.
            await process.run(
                ["ss", "-K", "-H", "-t", "-n", "dst", address],
                deadline_s=nft.DEADLINE_S,
            )
        except CommandError as error:
            _log.warning("connections with %s were not reset: %s", address, error)

    # --- tables

    async def load_rules(self, plan: NetworkPlan, mark: str) -> None:
        """Those inside first: from then on nothing leaves that may not, and the way out is up."""
        for rules in await self.rules(plan, mark):
            await nft.load(rules.text, rules.namespace)
        await self.connect(plan)

    async def rules(
        self, plan: NetworkPlan, mark: str, *, inside: bool = True
    ) -> tuple[Rules, ...]:
        """What is loaded for it, with the host's addresses of this moment in those `inside`.
        NetworkError.
        """
        local: tuple[str, ...] = ()
        if plan.namespace is not None and inside:
            six = plan.ipv6
            pools = self._pools if six is None else (*self._pools, six.pool)
            local = await surroundings.own_addresses(pools, ipv6=six is not None)
        with translated(f"tap {plan.lease.tap}"):
            frames = not plan.moved or await namespace.has_tap(plan)
        return rules_of(plan, mark, local, frames=frames)

    # --- what others have changed

    async def find(self, plan: NetworkPlan, mark: str) -> None:
        """Have the name of its namespace again, where it was lost while the machine runs.
        NetworkError.
        """
        self._ipv6 |= plan.ipv6 is not None
        if plan.namespace is not None:
            await namespace.find(plan.namespace, mark)

    async def mend(self, plan: NetworkPlan, mark: str) -> None:
        """Have the links as they were made, the machine's end first. NetworkError, also where only
        a new start has them again.
        """
        await self._forward_ipv6(plan)
        with translated(f"tap {plan.lease.tap}"):
            async with netlink() as host:
                if plan.namespace is not None:
                    await mending.mend_inside(plan, mark, host)
                await self._configure(plan)
                await mending.mend_outside(plan, mark, host)

    async def shut(self, plan: NetworkPlan) -> None:
        """Have nothing come or go until it is mended. NetworkError."""
        with translated(f"tap {plan.lease.tap}"):
            async with netlink() as host:
                await mending.shut(plan, host)

    async def remove_rules(self, tap: str) -> None:
        """Takes the tap's or the table's name."""
        await nft.load(ruleset.render_removal(tap.removeprefix("vmdriver_")))

    # --- looking

    async def marked(self) -> list[Found]:
        found = []
        with translated("list links"):
            async with netlink() as host:
                async for link in await host.link("dump"):
                    sandbox = parse_mark(
                        attribute(link, "IFLA_IFALIAS") or "", self._instance
                    )
                    if sandbox is not None:
                        found.append(
                            Found("tap", attribute(link, "IFLA_IFNAME"), sandbox)
                        )
        found += await self._namespaces()
        for table, comment in await nft.tables():
            sandbox = parse_mark(comment, self._instance)
            if sandbox is not None:
                found.append(Found("firewall", table, sandbox))
        return found

    async def _namespaces(self) -> list[Found]:
        found = []
        for name in netns.names():
            if not (name.startswith(_OURS) and netns.is_there(name)):
                continue
            with contextlib.suppress(NetworkError), translated(name):  # gone meanwhile
                mark = await namespace.owner(name)
                sandbox = parse_mark(mark or "", self._instance)
                if sandbox is not None:
                    found.append(Found("namespace", name, sandbox))
        return found

    async def taken(self) -> Taken:
        with translated("list links"):
            return await self._threads.run(_taken)

    async def own_networks(self) -> tuple[str, ...]:
        networks = await surroundings.connected_networks()
        return tuple(sorted({str(network) for network in networks}))

    async def lasting_addresses(self) -> tuple[str, ...]:
        """What the host is reached at, whatever machines come and go. NetworkError."""
        return await surroundings.own_addresses(
            self._pools, ipv6=self._ipv6, of_machines=False
        )

    async def way_to_ipv6(self) -> WayToIpv6:
        """What the host has of it now. NetworkError."""
        return await surroundings.way_to_ipv6()

    async def check_pool(self) -> None:
        """Refuse an address pool that overlaps what is in use. ConfigError."""
        for pool in self._pools:
            await surroundings.check_pool(pool)

    async def foreign_drops(self) -> list[str]:
        """Other tables' chains that drop forwarded packets by policy: an accept of ours
        cannot overrule them.
        """
        return await nft.dropping_chains()

    async def prepare(self) -> None:
        """Before anything else: refuse a pool that overlaps. That the host forwards is given back
        where a driver turned it on, and the last machine has gone without one.
        """
        await self.check_pool()
        await self._forwarding.give_back()
        await self._forwarding_ipv6.give_back()

    async def forward(self) -> bool:
        """Have the host forward still, of IPv6 too where a machine has it. True: it did not any
        more. NetworkError.
        """
        was_off = await self._forwarding.again()
        if self._forwarding_ipv6.needed:
            was_off |= await self._forwarding_ipv6.again()
        return was_off

    async def resolve(self, host: str) -> str:
        try:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(
                host, None, family=socket.AF_INET, type=socket.SOCK_STREAM
            )
        except OSError as error:
            raise Unavailable(
                f"the gateway's name {host} has no IPv4 address",
                detail=str(error),
                reason="GatewayUnresolved",
            ) from error
        return str(found[0][4][0])
