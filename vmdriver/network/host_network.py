"""Implements lifecycle.ports.host.Network: taps with netlink, tables with nft."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from vmdriver.errors import CommandError, ConfigError, NetworkError, Unavailable
from vmdriver.host import process
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.launch.environment import INNER_SANDBOX_NETWORK
from vmdriver.lifecycle.ports.host import Found, Ownership, Taken
from vmdriver.model.ids import parse_mark
from vmdriver.model.plan import NetworkPlan
from vmdriver.network import ruleset
from vmdriver.network.shaping import shape

_log = logging.getLogger(__name__)
_NFT_DEADLINE_S = 15.0
_TRIES = 3
_MAIN_TABLE = 254


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise NetworkError(
            f"{what}: {error.args[-1]}", detail=f"netlink error {error.code}"
        ) from error
    except OSError as error:
        raise NetworkError(f"{what}: {error.strerror}", detail=str(error)) from error


@asynccontextmanager
async def _netlink() -> AsyncIterator[Any]:
    async with AsyncIPRoute() as netlink:
        yield netlink


async def _check_free(netlink: Any, address: str) -> None:
    """NetworkError where an interface has it: the kernel would take it twice and send what is for
    one sandbox to another, such as one of a second driver with the same pool.
    """
    async for found in await netlink.addr("dump", family=socket.AF_INET):
        if _attribute(found, "IFA_ADDRESS") == address:
            raise NetworkError(
                f"{address} is in use on this host ({_attribute(found, 'IFA_LABEL')})",
                reason="AddressInUse",
                resolution="give each driver of this host an address_pool of its own, or stop "
                "what has the address",
            )


def _attribute(message: Any, name: str) -> Any:
    return message.get_attr(name)


class HostNetwork:
    """Taps and tables of one driver instance."""

    def __init__(
        self, instance: str, owner: Ownership, threads: Threads, address_pool: str
    ) -> None:
        self._instance = instance
        self._owner = owner
        self._threads = threads
        self._address_pool = ipaddress.IPv4Network(address_pool)

    # --- taps

    async def make_tap(self, plan: NetworkPlan, mark: str) -> None:
        """The tap belongs to QEMU's user."""
        lease = plan.lease
        await self.remove_tap(lease.tap, mark)
        with _translated(f"tap {lease.tap}"):
            async with _netlink() as netlink:
                if await netlink.link_lookup(ifname=lease.tap):
                    # Adding a tap that exists succeeds silently, so look first: this
                    # one is somebody else's.
                    raise NetworkError(
                        f"an interface {lease.tap} exists and is not ours"
                    )
                await _check_free(netlink, lease.host_ip)
                await netlink.link(
                    "add",
                    ifname=lease.tap,
                    kind="tuntap",
                    mode="tap",
                    uid=self._owner.uid,
                    gid=self._owner.gid,
                )
                index = (await netlink.link_lookup(ifname=lease.tap))[0]
                # Always the same address: a guest that comes back from memory knows it.
                await netlink.link(
                    "set", index=index, ifalias=mark, address=host_mac(lease.mac)
                )
                await shape(netlink, index, plan.mbit_s)
                await self._configure_tap(lease.tap)
                await netlink.addr(
                    "add",
                    index=index,
                    address=lease.host_ip,
                    prefixlen=lease.prefix_length,
                )
                await netlink.link("set", index=index, state="up")

    async def _configure_tap(self, tap: str) -> None:
        values = {
            # Packets from this tap may be sent on to 127.0.0.1; the firewall table lets
            # only the ports of host_access in.
            f"ipv4/conf/{tap}/route_localnet": "1",
            f"ipv4/conf/{tap}/rp_filter": "1",
            f"ipv4/conf/{tap}/accept_redirects": "0",
            f"ipv4/conf/{tap}/send_redirects": "0",
            f"ipv6/conf/{tap}/disable_ipv6": "1",
        }
        await self._threads.run(_write_sysctls, values)

    async def reassign_tap(self, tap: str, mark: str) -> None:
        with _translated(f"tap {tap}"):
            async with _netlink() as netlink:
                index = (await netlink.link_lookup(ifname=tap))[0]
                await netlink.link("set", index=index, ifalias=mark)

    async def limit_rate(self, plan: NetworkPlan) -> None:
        tap = plan.lease.tap
        with _translated(f"tap {tap}"):
            async with _netlink() as netlink:
                index = (await netlink.link_lookup(ifname=tap))[0]
                await shape(netlink, index, plan.mbit_s)

    async def remove_tap(self, tap: str, mark: str) -> None:
        with _translated(f"tap {tap}"):
            async with _netlink() as netlink:
                async for link in await netlink.link("dump", ifname=tap):
                    if _attribute(link, "IFLA_IFNAME") != tap:
                        continue
                    alias = _attribute(link, "IFLA_IFALIAS")
                    if alias not in {mark, None}:
                        raise NetworkError(
                            f"interface {tap} is marked {alias!r} and is left alone"
                        )
                    with _ignore_missing():
                        await netlink.link("del", index=link["index"])

    async def reset_connections(self, guest_ip: str) -> None:
        address = str(ipaddress.IPv4Address(guest_ip))
        try:
            # -K: sock_diag's SOCK_DESTROY; a kernel without it just lists them.
            await process.run(
                ["ss", "-K", "-H", "-t", "-n", "dst", address],
                deadline_s=_NFT_DEADLINE_S,
            )
        except CommandError as error:
            _log.warning("connections with %s were not reset: %s", address, error)

    # --- tables

    async def load_rules(self, plan: NetworkPlan, mark: str) -> None:
        await self._nft(ruleset.render(plan, mark))

    async def remove_rules(self, tap: str) -> None:
        """Takes the tap's or the table's name."""
        await self._nft(ruleset.render_removal(tap.removeprefix("vmdriver_")))

    @staticmethod
    async def _nft(text: str) -> None:
        try:
            await process.run(
                ["nft", "-f", "-"],
                stdin=text.encode(),
                deadline_s=_NFT_DEADLINE_S,
                tries=_TRIES,  # it does all or nothing, and may do it twice
            )
        except CommandError as error:
            raise NetworkError(
                f"the firewall table could not be changed: {error}", detail=error.detail
            ) from error

    # --- looking

    async def marked(self) -> list[Found]:
        found = []
        with _translated("list links"):
            async with _netlink() as netlink:
                async for link in await netlink.link("dump"):
                    sandbox = parse_mark(
                        _attribute(link, "IFLA_IFALIAS") or "", self._instance
                    )
                    if sandbox is not None:
                        found.append(
                            Found("tap", _attribute(link, "IFLA_IFNAME"), sandbox)
                        )
        for table in await self._tables():
            sandbox = parse_mark(table.get("comment", ""), self._instance)
            if sandbox is not None and table["name"].startswith("vmdriver_"):
                found.append(Found("firewall", table["name"], sandbox))
        return found

    @staticmethod
    async def _tables() -> list[dict[str, Any]]:
        """Our family's tables with their comments. nft's JSON leaves comments out
        before 1.0.8, so read its text.
        """
        listing = await process.run(
            ["nft", "-j", "list", "tables", "inet"],
            deadline_s=_NFT_DEADLINE_S,
            tries=_TRIES,
        )
        names = [
            o["table"]["name"]
            for o in json.loads(listing.stdout)["nftables"]
            if "table" in o
        ]
        tables = []
        for name in names:
            if not name.startswith("vmdriver_"):
                continue
            with contextlib.suppress(CommandError):  # removed meanwhile
                text = await process.run(
                    ["nft", "list", "table", "inet", name],
                    deadline_s=_NFT_DEADLINE_S,
                    tries=_TRIES,
                )
                tables.append({"name": name, "comment": _comment(text.stdout.decode())})
        return tables

    async def taken(self) -> Taken:
        with _translated("list links"):
            async with _netlink() as netlink:
                names = [
                    _attribute(link, "IFLA_IFNAME")
                    async for link in await netlink.link("dump")
                ]
                found = await netlink.addr("dump", family=socket.AF_INET)
                addresses = [
                    _attribute(address, "IFA_ADDRESS") async for address in found
                ]
        return Taken(frozenset(names), frozenset(addresses))

    async def own_networks(self) -> tuple[str, ...]:
        return tuple(sorted({str(network) for network in await self._connected()}))

    async def _connected(self) -> list[ipaddress.IPv4Network]:
        """On-link and routed IPv4 destinations of the main table, without the default
        route and our taps'.
        """
        with _translated("list routes"):
            async with _netlink() as netlink:
                ours = {
                    link["index"]
                    async for link in await netlink.link("dump")
                    if (_attribute(link, "IFLA_IFALIAS") or "").startswith("vmdriver/")
                }
                networks = []
                async for route in await netlink.route(
                    "dump", family=socket.AF_INET, table=_MAIN_TABLE
                ):
                    destination = _attribute(route, "RTA_DST")
                    if (
                        destination is not None
                        and _attribute(route, "RTA_OIF") not in ours
                    ):
                        networks.append(
                            ipaddress.IPv4Network(f"{destination}/{route['dst_len']}")
                        )
        return networks

    async def check_pool(self) -> None:
        """Refuse an address pool that overlaps what is in use. ConfigError."""
        taken = [(INNER_SANDBOX_NETWORK, "which the supervisor uses inside the guest")]
        taken += [
            (network, "to which this host has a route")
            for network in await self._connected()
        ]
        for network, why in taken:
            if network.overlaps(self._address_pool):
                raise ConfigError(
                    f"address_pool {self._address_pool} overlaps {network}, {why}",
                    resolution="choose another address_pool",
                )

    async def foreign_drops(self) -> list[str]:
        """Other tables' chains that drop forwarded packets by policy: an accept of ours
        cannot overrule them.
        """
        listing = await process.run(
            ["nft", "-j", "list", "chains"], deadline_s=_NFT_DEADLINE_S
        )
        chains = [
            o["chain"] for o in json.loads(listing.stdout)["nftables"] if "chain" in o
        ]
        return [
            f"{c['family']} {c['table']} {c['name']}"
            for c in chains
            if c.get("hook") == "forward" and c.get("policy") == "drop"
        ]

    async def prepare(self) -> None:
        """Before anything else: refuse a pool that overlaps, and let the host forward."""
        await self.check_pool()
        await self._threads.run(_write_sysctls, {"ipv4/ip_forward": "1"})

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


def host_mac(guest_mac: str) -> str:
    """The tap's own address: the guest's with one bit of its first byte changed."""
    first, rest = guest_mac.split(":", 1)
    return f"{int(first, 16) ^ 0x40:02x}:{rest}"


def _comment(table_text: str) -> str:
    for line in table_text.splitlines()[1:3]:
        words = line.strip()
        if words.startswith('comment "'):
            return words.removeprefix('comment "').removesuffix('"')
    return ""


@contextmanager
def _ignore_missing() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def _write_sysctls(values: dict[str, str]) -> None:
    for name, value in values.items():
        path = Path("/proc/sys/net") / name
        try:
            if path.read_text().strip() != value:
                path.write_text(value)
        except OSError as error:
            if "ipv6" in name and error.errno == errno.ENOENT:
                continue  # a host without IPv6
            raise NetworkError(
                f"sysctl net/{name} cannot be set to {value}: {error.strerror}"
            ) from error
