"""IPv6 of the host that machines share: whether it has any, that it forwards, and that what is made stays."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.netns.conftest import STRICT, Net, run
from tests.netns.test_guard import Guarded, soon
from tests.netns.test_host_network import POOL
from tests.netns.test_ipv6 import HOST6, MARK, OTHER, POOL6, PUBLIC, six, walled
from vmdriver.errors import ConfigError, NetworkError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.network.guard.guard import NetworkGuard
from vmdriver.network.host_network import HostNetwork

CONF = Path("/proc/sys/net/ipv6/conf")
SETTING = CONF / "all" / "forwarding"


@pytest.fixture
async def files(net: Net) -> AsyncIterator[Threads]:
    """On a host that does not forward."""
    SETTING.write_text("0")
    files = Threads("test", 2)
    yield files
    files.close()


@pytest.fixture
def host(files: Threads, tmp_path: Path) -> HostNetwork:
    return driver(files, tmp_path)


def driver(files: Threads, folder: Path) -> HostNetwork:
    owner = Ownership(os.getuid(), os.getgid())
    return HostNetwork("test", owner, files, POOL, folder / "notes", ipv6_pool=POOL6)


def forwards() -> bool:
    return SETTING.read_text().strip() == "1"


def uplink(net: Net) -> str:
    """The host's way to the rest of the world, without a default route."""
    space = net.space("public")
    net.link_ipv6("public", space, HOST6, PUBLIC)
    return space


def routed(net: Net) -> None:
    uplink(net)
    run("ip", "-6", "route", "add", "default", "via", PUBLIC)


ADVERTISE = """
import socket, struct, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
index = socket.if_nametoindex("eth0")
message = struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
prefix = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 3600, 1800, 0) + socket.inet_pton(socket.AF_INET6, "2001:db8:77::")
sent, end = 0, time.monotonic() + 20
while sent < 3 and time.monotonic() < end:
    time.sleep(0.3)
    own = [line.split()[0] for line in open("/proc/net/if_inet6") if line.startswith("fe80") and "eth0" in line]
    try:
        if not sent:
            s.bind((socket.inet_ntop(socket.AF_INET6, bytes.fromhex(own[0])), 0, 0, index))
        s.sendto(message + prefix, ("ff02::1", 0, 0, index))
        sent += 1
    except (OSError, IndexError):
        continue
"""


def advertised(net: Net) -> None:
    """A router says that it is one, and what addresses to have."""
    space = uplink(net)
    program = [sys.executable, "-c", ADVERTISE]
    run("ip", "netns", "exec", space, *program)


def by_router() -> str:
    return run("ip", "-6", "route", "show", "default", "proto", "ra").stdout


async def test_a_host_without_a_way_says_so(net: Net, host: HostNetwork) -> None:
    assert "no way to IPv6" in (await host.way_to_ipv6()).lack
    uplink(net)
    assert "no way to IPv6" in (await host.way_to_ipv6()).lack, "one network is not all"
    run("ip", "-6", "route", "add", "default", "via", PUBLIC)
    run("ip", "-6", "route", "add", "2001:db8:50::/48", "via", PUBLIC)
    way = await host.way_to_ipv6()
    assert way.lack == ""
    assert way.networks == ("2001:db8:1::/64", "2001:db8:50::/48")
    plan = walled()
    await host.make_tap(plan, MARK)
    await host.load_rules(plan, MARK)
    assert await host.way_to_ipv6() == way, "our own links do not count"
    await host.remove_tap(plan.lease.tap, MARK)


async def test_it_forwards_for_machines_that_have_it_and_no_longer(
    net: Net, files: Threads, host: HostNetwork, tmp_path: Path
) -> None:
    routed(net)
    run("sysctl", "-qw", "net.ipv6.conf.public.forwarding=1")
    addresses = AddressPool("test", POOL)
    one, two = walled(addresses=addresses), walled(addresses=addresses, sandbox_id="s2")
    two = two.model_copy(update={"ipv6": None})
    await host.make_tap(two, OTHER)
    await host.load_rules(two, OTHER)
    assert not forwards(), "nobody has any"
    await host.make_tap(one, MARK)
    await host.load_rules(one, MARK)
    assert forwards()
    following = driver(files, tmp_path)
    await following.prepare()
    assert forwards(), "its machine is there"
    await following.remove_tap(one.lease.tap, MARK)
    await following.remove_tap(two.lease.tap, OTHER)
    assert not forwards()
    assert (CONF / "public" / "forwarding").read_text() == "1\n", "as it was before"
    assert (CONF / "lo" / "forwarding").read_text() == "0\n"


async def test_it_stays_on_for_others_who_route_by_now(
    net: Net, host: HostNetwork
) -> None:
    routed(net)
    plan = walled()
    await host.make_tap(plan, MARK)
    await host.load_rules(plan, MARK)
    run("nft", "-f", "-", input=STRICT.replace("ip strict", "ip6 strict"))
    await host.remove_tap(plan.lease.tap, MARK)
    assert forwards()


async def test_a_host_that_listens_to_routers_is_never_made_deaf_to_them(
    net: Net, host: HostNetwork
) -> None:
    for name in ("default", "all"):
        (CONF / name / "accept_ra").write_text("1")
    advertised(net)
    await soon(by_router, "the kernel has not heard it", 10)
    await soon(
        lambda: "2001:db8:77:" in run("ip", "-6", "addr").stdout, "no address", 10
    )
    way = await host.way_to_ipv6()
    assert "router advertisements on public" in way.lack
    assert "net.ipv6.conf.public.accept_ra=2" in way.lack
    plan = walled()
    for _ in range(2):  # a machine whose plan is from before
        await host.make_tap(plan, MARK)
        await host.load_rules(plan, MARK)
    assert not forwards()
    assert by_router()
    await host.remove_tap(plan.lease.tap, MARK)
    (CONF / "public" / "accept_ra").write_text("2")
    assert (await host.way_to_ipv6()).lack == ""
    await host.make_tap(plan, MARK)
    await host.load_rules(plan, MARK)
    assert forwards()
    assert by_router(), "and is had still"
    await host.remove_tap(plan.lease.tap, MARK)
    assert not forwards()
    assert by_router()


async def test_a_host_that_has_not_heard_its_router_yet_will_hear_it(
    net: Net, host: HostNetwork
) -> None:
    """After a boot a machine may go on from memory before the network is up."""
    for name in ("default", "all"):
        (CONF / name / "accept_ra").write_text("1")
    plan = walled()
    await host.make_tap(plan, MARK)
    await host.load_rules(plan, MARK)
    assert not forwards(), "there is nothing to forward to"
    advertised(net)
    await soon(by_router, "the kernel has not heard it", 10)
    await host.remove_tap(plan.lease.tap, MARK)


async def test_a_pool_in_use_is_refused(net: Net, host: HostNetwork) -> None:
    uplink(net)
    run("ip", "addr", "add", "fd00:1::99/64", "dev", "public", "nodad")
    with pytest.raises(ConfigError, match=r"address_pool_ipv6 fd00:1::/64 overlaps"):
        await host.check_pool()


async def test_an_address_that_another_driver_has_given_away_is_not_used_twice(
    net: Net, host: HostNetwork
) -> None:
    routed(net)
    plan = walled()
    run("ip", "addr", "add", six(plan).uplink_ip, "dev", "public", "nodad")
    with pytest.raises(NetworkError, match=r"fd00:1::3 is in use .* \(public\)"):
        await host.make_tap(plan, MARK)


@pytest.fixture
async def guarded(net: Net, files: Threads, host: HostNetwork) -> AsyncIterator[Shown]:
    """On a host that forwards already: with that it has more addresses of its own."""
    routed(net)
    SETTING.write_text("1")
    local = ("ip", "-6", "route", "show", "table", "local")
    await soon(lambda: "anycast 2001:db8:1::" in run(*local).stdout, "not up", 10)
    guard = NetworkGuard(host, files)
    guard.open()
    plan = walled(max_connections=512)
    await host.make_tap(plan, MARK)
    await guard.keep(plan, MARK)
    machine = Shown(guard, plan, host)
    await soon(machine.carries, "its way out stays down", 10)
    yield machine
    await guard.close()
    await host.remove_tap(plan.lease.tap, MARK)


class Shown(Guarded):
    def shape(self) -> list[str]:
        looks = ("addr", "route show table all", "rule", "neigh")
        shown = [self.inside("ip", "-6", *look.split()) for look in looks]
        shown += [
            run("ip", "-6", *look.split(), "show", "dev", self.tap).stdout
            for look in ("addr", "route", "neigh")
        ]
        shown += [self.inside("nft", "list", "ruleset"), self.rules()]
        shown.append(self.inside("sysctl", "-a", "-r", "^net.ipv6.conf"))
        lines = (
            line
            for text in shown
            for line in text.splitlines()
            if not line.startswith(("multicast", "anycast")) and "valid_lft" not in line
        )
        return sorted(re.sub(r"^\d+: |@if\d+|: <.*", "", line) for line in lines)


INSIDE = [
    "nft flush set inet {table} host6",
    "ip -6 addr add fd77::1/64 dev out nodad",
    "ip -6 route del default",
    "ip -6 rule add from fd00::/8 table 77",
    "ip -6 neigh change {guest} lladdr 02:00:00:00:00:99 dev {tap}",
    "sysctl -qw net.ipv6.conf.all.disable_ipv6=1",
    "ip link set out down",
]
OUTSIDE = [
    "ip link del {tap}",
    "ip -6 addr flush dev {tap}",
    "ip -6 addr add fd77::1/64 dev {tap} nodad",
    "ip -6 route del {guest}",
]


@pytest.mark.parametrize(
    ("where", "change"),
    [
        *(("inside", change) for change in INSIDE),
        *(("host", change) for change in OUTSIDE),
    ],
)
async def test_whatever_is_changed_around_a_machine_is_as_it_was_again(
    guarded: Shown, where: str, change: str
) -> None:
    if "flush set" in change:
        run("ip", "addr", "add", "2001:db8:44::1/128", "dev", "lo", "nodad")
        await soon(
            lambda: "2001:db8:44::1" in "".join(guarded.shape()), "it is not known"
        )
        await asyncio.sleep(0.3)
    before, own = guarded.shape(), six(guarded.plan)
    words = change.format(
        tap=guarded.tap,
        table=f"vmdriver_{guarded.tap}",
        guest=own.guest_ip,
        host=own.host_ip,
    ).split()
    if where == "inside":
        guarded.inside(*words)
    else:
        run(*words)
    await soon(lambda: guarded.news, "nobody noticed")
    await soon(
        lambda: guarded.shape() == before,
        "it is not as it was: " + "\n".join(sorted(set(guarded.shape()) ^ set(before))),
    )
    assert not guarded.guard.why_broken(guarded.tap)


async def test_it_forwards_again_while_there_are_machines_that_need_it(
    guarded: Shown,
) -> None:
    SETTING.write_text("0")
    await soon(forwards, "it stays off")
    assert not guarded.guard.why_broken(guarded.tap)


async def test_it_forwards_once_there_is_something_to_forward_to(
    net: Net, files: Threads, host: HostNetwork
) -> None:
    guard = NetworkGuard(host, files)
    guard.open()
    plan = walled()
    await host.make_tap(plan, MARK)
    await guard.keep(plan, MARK)
    assert not forwards()
    routed(net)
    await soon(forwards, "it stays off")
    await guard.close()
    await host.remove_tap(plan.lease.tap, MARK)
    assert not forwards()


async def test_an_address_that_the_host_has_later_is_denied_too(guarded: Shown) -> None:
    run("ip", "addr", "add", "2001:db8:44::1/128", "dev", "lo", "nodad")
    await soon(
        lambda: "2001:db8:44::1" in guarded.inside("nft", "list", "ruleset"),
        "it is not denied",
    )


async def test_one_that_waited_without_it_is_given_it_by_its_owner(
    net: Net, files: Threads, host: HostNetwork
) -> None:
    routed(net)
    plan = walled()
    waited = plan.model_copy(update={"ipv6": None, "egress": "none"})
    await host.make_tap(waited, MARK)
    await host.load_rules(waited, MARK)
    await host.reassign_tap(plan.lease.tap, OTHER)
    await host.give_ipv6(plan, OTHER)
    await host.load_rules(plan, OTHER)
    given = _looks(plan.lease.tap)
    await host.remove_tap(plan.lease.tap, OTHER)
    await host.make_tap(plan, OTHER)
    await host.load_rules(plan, OTHER)
    assert _looks(plan.lease.tap) == given, "as if it had been made with it"
    await host.remove_tap(plan.lease.tap, OTHER)


def _looks(tap: str) -> list[str]:
    """What is in its namespace, and of the link on the host, of IPv6."""
    shown = [
        run("ip", *where, "-6", "-o", *look.split(), check=False).stdout
        for where, looks in (
            (("-n", tap), ("addr", "route show table all", "neigh", "rule")),
            (
                (),
                (
                    f"addr show dev {tap}",
                    f"route show dev {tap}",
                    f"neigh show dev {tap}",
                ),
            ),
        )
        for look in looks
    ]
    lines = "".join(shown).splitlines()
    return sorted(line.lstrip("0123456789: ") for line in lines if "cast " not in line)
