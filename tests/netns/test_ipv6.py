"""What a machine with IPv6 reaches, tried with real packets, and what root in the guest tries against it."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.netns.conftest import Net, run
from tests.netns.guests import Around
from tests.netns.test_host_network import POOL, network_plan
from tests.netns.test_namespace import heard, raw
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.ids import host_mac
from vmdriver.model.ipv6 import Ipv6, block
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.reach.explained import Destination, deciding, rules
from vmdriver.network.reach.replica import live_rules, outcomes

MARK, OTHER = "vmdriver/test/s1", "vmdriver/test/s2"
POOL6 = "fd00:1::/64"
HOST6, PUBLIC, PRIVATE, META = (
    "2001:db8:1::1",
    "2001:db8:1::10",
    "fd99::10",
    "fd00:ec2::254",
)


@pytest.fixture
def host(net: Net, tmp_path: Path) -> Iterator[HostNetwork]:
    files, owner = Threads("test", 2), Ownership(os.getuid(), os.getgid())
    yield HostNetwork("test", owner, files, POOL, tmp_path / "notes", ipv6_pool=POOL6)
    files.close()


@pytest.fixture
def around(net: Net, host: HostNetwork) -> Around:
    """A host with its own way to IPv6, a private network and somebody's metadata service."""
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for name, here, there in (
        ("public", HOST6, PUBLIC),
        ("private", "fd99::1", PRIVATE),
        ("meta", "fd00:ec2::1", META),
    ):
        space = net.space(name)
        net.link_ipv6(name, space, here, there)
        net.serve(there, 80, space)
    run("ip", "-6", "route", "add", "default", "via", PUBLIC)
    net.serve("::", 8888)
    for address in (PUBLIC, PRIVATE, META):
        until_there(net, address)
    return Around(net, host, walled=True)


def until_there(net: Net, address: str) -> None:
    """The kernel takes a while until a new link carries IPv6."""
    assert any(net.dial(None, address, 80) for _ in range(20)), address


def walled(**changes: object) -> NetworkPlan:
    denied = changes.pop("denied", ())
    plan = network_plan(**changes)
    own = block(POOL6, plan.lease.index, denied)
    return plan.model_copy(update={"namespace": plan.lease.tap, "ipv6": own})


def six(plan: NetworkPlan) -> Ipv6:
    assert plan.ipv6 is not None
    return plan.ipv6


def refused(around: Around, space: str, address: str, port: int) -> bool:
    name, seconds = around.refusal(space, address, port)
    return name in {"ECONNREFUSED", "EACCES"} and seconds < 0.9


def test_what_is_far_away_is_reached_under_the_hosts_address_and_nothing_near(
    around: Around,
) -> None:
    plan = walled()
    space = around.guest("g", plan)
    around.load(plan)
    assert around.dial(space, PUBLIC, 80) == HOST6
    for address in (PRIVATE, META):
        assert refused(around, space, address, 80), address
    for address in (HOST6, "fd99::1", six(plan).host_ip, six(plan).uplink_ip):
        assert refused(around, space, address, 8888), address
    assert around.refusal(space, PRIVATE, 80, "udp")[0] == "EACCES"
    assert around.dial(None, six(plan).guest_ip, 8888) is None, (
        "nor does anybody come in"
    )


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({"egress": "none", "egress_allow": ("::/0",)}, (PUBLIC, PRIVATE)),
        ({"egress": "open", "egress_deny": ("2001:db8::/32",)}, (PRIVATE,)),
    ],
    ids=str,
)
def test_egress_and_its_lists_decide(
    around: Around, changes: dict[str, object], reached: tuple[str, ...]
) -> None:
    plan = walled(**changes)
    space = around.guest("g", plan)
    around.load(plan)
    wanted = (PUBLIC, PRIVATE, META)
    found = tuple(to for to in wanted if around.dial(space, to, 80))
    assert found == reached


TRIED = [
    Destination(address, port, kind)
    for kind, port in (("tcp", 80), ("udp", 53))
    for address in (
        *("2001:db8:9::1", "2a00::1", "fd77::1", "2001:db8:66::1", "64:ff9b::a00:1"),
        *("2002:a00:1::1", "2001::1", "fec0::1", "fd00:ec2::254", "fd20:ce::254"),
        *("fd00:1::6", HOST6, "::ffff:10.0.0.1", "10.9.9.9"),
    )
] + [Destination("fe80::1", 80), Destination("ff02::1", 53, "udp")]


@pytest.mark.parametrize(
    "changes",
    [
        {"egress": "none", "egress_allow": ("2a00::/12", "64:ff9b::/32")},
        {"egress": "private-denied", "egress_deny": ("2001:db8:66::/48",), "egress_only": ("fd77::/64", "2000::/3")},
        {"egress": "private-denied", "denied": ("2001:db8:9::/64",), "max_connections": 200},
        {"egress": "open", "egress_only": ("10.0.0.0/8",)},
    ],
    ids=str,
)  # fmt: skip
async def test_every_destination_fares_as_it_is_explained(
    net: Net, host: HostNetwork, changes: dict[str, object]
) -> None:
    run("ip", "addr", "add", f"{HOST6}/128", "dev", "lo")
    plan = walled(**changes)
    await host.make_tap(plan, MARK)
    net.spaces.append(plan.lease.tap)
    await host.load_rules(plan, MARK)
    known = rules(plan, (f"{HOST6}/128",))
    found = await outcomes(plan, await live_rules(plan.lease.tap), TRIED)
    for to, outcome in zip(TRIED, found, strict=True):
        rule = known[deciding(known, to)]
        assert outcome.reached is rule.reached, f"{to}: {outcome}, {rule}"


# --- root in the guest


def packet(
    plan: NetworkPlan,
    *,
    source: str = "",
    to: str = PUBLIC,
    head: int = 17,
    body: bytes = b"",
    hops: int = 64,
    kind: bytes = b"\x86\xdd",
) -> bytes:
    """A frame with an IPv6 packet, for the gateway's MAC; of UDP where nothing else is said."""
    source = source or six(plan).guest_ip
    body = body or udp(source, to)
    head_ipv6 = struct.pack(">IHBB", 6 << 28, len(body), head, hops) + ends(source, to)
    macs = (host_mac(plan.lease.mac), plan.lease.mac)
    ethernet = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)
    return ethernet + kind + head_ipv6 + body


def ends(source: str, to: str) -> bytes:
    return b"".join(socket.inet_pton(socket.AF_INET6, one) for one in (source, to))


def udp(source: str, to: str) -> bytes:
    """With a right sum: others are not followed as connections."""
    whole = struct.pack(">HHHH", 9, 9, 32, 0) + b"mark" + bytes(20)
    return whole[:6] + checked(source, to, 17, whole) + whole[8:]


def checked(source: str, to: str, head: int, body: bytes) -> bytes:
    words = ends(source, to) + struct.pack(">II", len(body), head) + body
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


def said(source: str, to: str, body: bytes) -> bytes:
    """The same of ICMPv6."""
    return body[:2] + checked(source, to, 58, body) + body[4:]


def near(kind: int, *words: bytes) -> bytes:
    """A neighbour's question (135), a claim (136: a router's, asked for, to be taken over), or a router's word."""
    start = {
        135: struct.pack(">BBHI", 135, 0, 0, 0),
        136: struct.pack(">BBHI", 136, 0, 0, 0xE0000000),
        134: struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0),
    }[kind]
    return b"".join((start, *words, b"mark"))


def leaves(around: Around, plan: NetworkPlan, space: str, *frames: bytes) -> bool:
    """Whether anything of them comes to the host."""
    with raw(space, "eth0") as guest, raw(None, plan.lease.tap) as outside:
        for frame in frames * 2:
            guest.send(frame)
        return heard(outside, lambda frame: b"mark" in frame)


@pytest.fixture
def guest(around: Around) -> tuple[Around, NetworkPlan, str]:
    plan = walled(egress="open")
    space = around.guest("g", plan)
    around.load(plan)
    assert leaves(around, plan, space, packet(plan)), "what is right passes"
    return around, plan, space


Guest = tuple[Around, NetworkPlan, str]


def none_leaves(
    around: Around, plan: NetworkPlan, space: str, frames: Iterable[bytes]
) -> None:
    """Each is tried by itself only where one of them did."""
    every = list(frames)
    if leaves(around, plan, space, *every):
        assert not [one.hex() for one in every if leaves(around, plan, space, one)]


def test_what_is_not_its_own_or_leads_to_the_link_or_to_ipv4_does_not_come_out(
    guest: Guest,
) -> None:
    sources = (
        *(
            "fd00:1::1",
            "fd00:1::3",
            "fd00:1::6",
            HOST6,
            "fe80::2",
            "::",
            "::1",
            "ff02::1",
        ),
        "::ffff:10.0.128.2",
    )
    to = (
        *("::1", "::ffff:169.254.169.254", "::10.0.0.1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::1", "2002:7f00:1::1", "2001::1", "fe80::1", "ff02::1", "ff05::2"),
        *("ff0e::1", "fec0::1", "fd00:ec2::254", "fd00:1::3", "fd00:1::6"),
    )
    kinds = ("8100000586dd", "88a8000586dd", "810000000800", "0800")
    plan = guest[1]
    none_leaves(*guest, (packet(plan, source=one) for one in sources))
    none_leaves(*guest, (packet(plan, to=one) for one in to))
    none_leaves(*guest, (packet(plan, kind=bytes.fromhex(one)) for one in kinds))


def test_words_between_neighbours_are_neither_heard_nor_passed_on(guest: Guest) -> None:
    """Whoever could claim another's address there would get its packets."""
    around, plan, space = guest
    own, lease = six(plan), plan.lease
    shown = ["ip", "netns", "exec", lease.tap, "ip", "-6"]
    before = [run(*shown, what, "show").stdout for what in ("neigh", "route", "addr")]
    mac = bytes.fromhex(lease.mac.replace(":", ""))
    frames = []

    def add(source: str, to: str, body: bytes) -> None:
        body = said(source, to, body)
        more = {"source": source, "to": to, "head": 58, "hops": 255}
        frames.append(packet(plan, body=body, **more))

    for target in (own.host_ip, own.uplink_ip, "fd00:1::6", PUBLIC, "fe80::1"):
        name = socket.inet_pton(socket.AF_INET6, target)
        for source in (own.guest_ip, "fe80::2", target):
            for to in (target, own.host_ip, "ff02::1", PUBLIC):
                add(source, to, near(135, name, b"\x01\x01", mac))
                add(source, to, near(136, name, b"\x02\x01", mac))
    for to in ("ff02::1", own.host_ip, PUBLIC):
        add("fe80::2", to, near(134))
        add(own.guest_ip, to, near(134))
    assert not leaves(around, plan, space, *frames)
    with raw(space, "eth0") as wire:
        for frame in frames:
            wire.send(frame)
        answer = bytes.fromhex(host_mac(lease.mac).replace(":", ""))
        begin = answer + b"\x86\xdd"
        assert not heard(wire, lambda f: f[6:14] == begin and f[54] in {135, 136})
    assert [
        run(*shown, what, "show").stdout for what in ("neigh", "route", "addr")
    ] == before


def test_a_packet_that_names_where_to_go_on_to_does_not_leave(guest: Guest) -> None:
    """Rules have seen another destination. Of the old kind, of mobile nodes, of segments."""
    around, plan, space = guest
    way, inner = socket.inet_pton(socket.AF_INET6, PRIVATE), packet(plan)[54:]
    options = struct.pack(">BBBB4x", 17, 0, 1, 4) + inner
    frames = []
    for kind in (0, 2, 4):
        routed = struct.pack(">BBBBI", 17, 2, kind, 1, 0) + way + inner
        behind = struct.pack(">BBBB4x", 43, 0, 1, 4) + routed
        ways = ((43, routed), (0, behind), (60, behind))
        frames += [packet(plan, head=head, body=body) for head, body in ways]
    none_leaves(around, plan, space, frames)
    for head in (0, 60):
        assert leaves(around, plan, space, packet(plan, head=head, body=options))


def fragments(plan: NetworkPlan, to: str, *, first: int = 8) -> list[bytes]:
    whole = packet(plan, to=to)[54:]
    parts = ((0, whole[:first]), (first, whole[first:]))
    made = []
    for at, part in parts:
        more = at + len(part) < len(whole)
        head = struct.pack(">BBHI", 17, 0, at | more, 77)
        made.append(packet(plan, to=to, head=44, body=head + part))
    return made


def test_in_pieces_nothing_gets_where_it_would_not_as_a_whole(around: Around) -> None:
    plan = walled()
    space = around.guest("g", plan)
    around.load(plan)
    whole = fragments(plan, PUBLIC)
    assert leaves(around, plan, space, *whole), "these come together again"
    for to in (PRIVATE, META, HOST6, "fd00:1::6", "fe80::1"):
        frames = fragments(plan, to)
        none_leaves(around, plan, space, (*frames, *frames[::-1]))


def test_two_machines_do_not_reach_each_other(around: Around) -> None:
    addresses = AddressPool("test", POOL)
    one = walled(egress="open", addresses=addresses)
    two = walled(egress="open", addresses=addresses, sandbox_id="s2")
    here, there = around.guest("g", one), around.guest("g2", two, OTHER)
    around.load(one)
    around.load(two, OTHER)
    around.serve("::", 22, there)
    assert around.dial(there, six(two).guest_ip, 22), "it listens"
    assert refused(around, here, six(two).guest_ip, 22)
    assert around.dial(None, six(two).guest_ip, 22) is None, "nor does the host connect"
    run("nft", "flush", "ruleset")
    assert around.dial(here, six(two).guest_ip, 22) is None, (
        "also without the host's rules"
    )
    assert around.dial(here, HOST6, 8888) is None
    assert around.dial(here, META, 80) is None


def test_what_the_host_says_of_a_connection_reaches_the_guest(around: Around) -> None:
    plan = walled(egress="open")
    space = around.guest("g", plan)
    around.load(plan)
    run("ip", "link", "set", "public", "mtu", "1300")
    program = [sys.executable, "-c", TOO_LARGE, PUBLIC]
    assert run("ip", "netns", "exec", space, *program).stdout.split() == [
        "EMSGSIZE",
        "1300",
    ]


TOO_LARGE = """
import errno, socket, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(41, 23, 2)
s.connect((sys.argv[1], 9)); end = time.monotonic() + 5
while time.monotonic() < end:
    try:
        s.send(bytes(1400)); time.sleep(0.05)
    except OSError as e:
        print(errno.errorcode[e.errno], s.getsockopt(41, 24)); break
"""


def test_a_machine_without_it_sends_nothing_of_the_kind(around: Around) -> None:
    """Whatever addresses root gives itself, also where the host forwards IPv6."""
    run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    with_it = walled(egress="open")
    plan = with_it.model_copy(update={"ipv6": None})
    space = around.guest("g", plan)
    around.load(plan)
    for to in (PUBLIC, "ff02::1", six(with_it).uplink_ip):
        assert not leaves(around, plan, space, packet(with_it, to=to))
    assert run("ip", "-n", plan.lease.tap, "-6", "addr").stdout == ""
    assert "inet6" not in run("ip", "addr", "show", plan.lease.tap).stdout
