"""A machine's network namespace: what it is made of, what comes through, and what stays when the host's rules go."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.conftest import Net, run
from tests.netns.guests import Around
from tests.netns.test_host_network import ALIAS, POOL, network_plan
from vmdriver.errors import NetworkError, NotOursError
from vmdriver.host.confined import netns
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Found, Ownership
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.netlink import netlink_in

MARK, OTHER = "vmdriver/test/s1", "vmdriver/test/s2"
PORT = 17670
PUBLIC = "203.0.113.10"
COUNT = "/proc/sys/net/netfilter/nf_conntrack_count"


@pytest.fixture
def host(net: Net) -> Iterator[HostNetwork]:
    files = Threads("test", 2)
    yield HostNetwork("test", Ownership(os.getuid(), os.getgid()), files, POOL)
    files.close()


@pytest.fixture
def around(net: Net, host: HostNetwork) -> Around:
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for name, here, there in (
        ("public", "203.0.113.1/24", f"{PUBLIC}/24"),
        ("private", "10.99.0.1/24", "10.99.0.10/24"),
    ):
        space = net.space(name)
        net.link(name, name, space, here, there)
        net.serve(there.split("/")[0], 80, space)
    net.serve("127.0.0.1", PORT)
    net.serve("0.0.0.0", 8888)
    return Around(net, host, walled=True)


def walled(**changes: object) -> NetworkPlan:
    plan = network_plan(gateway_port=PORT, **changes)
    return plan.model_copy(update={"namespace": plan.lease.tap})


async def test_a_namespace_is_made_marked_given_away_and_removed(
    host: HostNetwork,
) -> None:
    plan = walled()
    tap = plan.lease.tap
    for _ in range(2):  # an own leftover is replaced
        await host.make_tap(plan, MARK)
    both = {Found("tap", tap, "s1"), Found("namespace", tap, "s1")}
    assert set(await host.marked()) == both
    assert "10.0.128.3/32" in run("ip", "addr", "show", tap).stdout
    inside = run("ip", "-n", tap, "addr").stdout
    assert "10.0.128.1/32" in inside
    assert "127.0.0.1" not in inside, "its loopback is down: nothing is local there"
    assert (await host.taken()).addresses >= {"10.0.128.3"}
    await host.reassign_tap(tap, OTHER)
    assert {found.sandbox_id for found in await host.marked()} == {"s2"}
    with pytest.raises(NetworkError, match="left alone"):
        await host.remove_tap(tap, MARK)
    for _ in range(2):
        await host.remove_tap(tap, OTHER)
    assert await host.marked() == []
    assert not netns.path(tap).exists()
    assert tap not in run("ip", "link").stdout


async def test_a_block_that_another_drivers_machine_has_is_not_used_twice(
    host: HostNetwork,
) -> None:
    other = walled(sandbox_id="s2")
    await host.make_tap(other, "vmdriver/other/s2")
    for plan in (walled(), walled().model_copy(update={"namespace": None})):
        with pytest.raises(NetworkError, match=r"10\.0\.128\.1 is in use"):
            await host.make_tap(plan, MARK)
    await host.remove_tap(other.lease.tap, "vmdriver/other/s2")


async def test_a_namespace_of_somebody_else_is_left_alone(
    host: HostNetwork, net: Net
) -> None:
    plan = walled()
    tap = plan.lease.tap
    run("ip", "netns", "add", tap)
    net.spaces.append(tap)
    run("ip", "-n", tap, "link", "set", "lo", "alias", "precious")
    for attempt in (host.make_tap(plan, MARK), host.remove_tap(tap, MARK)):
        with pytest.raises(NetworkError, match="left alone"):
            await attempt
    assert netns.is_there(tap)
    assert await host.marked() == []


@pytest.mark.parametrize("lost", ["link", "namespace", "mount"])
async def test_half_of_it_is_found_and_removed(host: HostNetwork, lost: str) -> None:
    plan = walled()
    tap = plan.lease.tap
    await host.make_tap(plan, MARK)
    if lost == "link":
        run("ip", "link", "del", tap)
        assert await host.marked() == [Found("namespace", tap, "s1")]
    elif lost == "namespace":
        run("ip", "netns", "del", tap)
    else:
        run("umount", str(netns.path(tap)))
    await host.remove_tap(tap, MARK)
    assert await host.marked() == []
    assert not netns.path(tap).exists()
    await host.make_tap(plan, MARK)
    await host.remove_tap(tap, MARK)


@pytest.mark.parametrize(
    "changes",
    [
        ["ip link set {tap} alias nothing"],
        ["ip link set {tap} down name other"],
        ["ip link set {tap} alias nothing", "ip link set {tap} down name other"],
        ["ip -n {tap} link set lo alias nothing"],
        ["ip -n {tap} link set {tap} name other", "ip -n {tap} link set out name more"],
        [
            "ip -n {tap} link set lo alias nothing",
            "ip link set {tap} alias nothing",
            "ip -n {tap} link set {tap} name other",
        ],
    ],
)
async def test_whatever_it_is_called_by_now_what_we_made_is_removed(
    host: HostNetwork, changes: list[str]
) -> None:
    plan = walled()
    tap = plan.lease.tap
    await host.make_tap(plan, MARK)
    for words in changes:
        run(*words.format(tap=tap).split())
    with netns.path(tap).open() as held:  # such as by a process that has not ended
        await host.remove_tap(tap, MARK, made=True)
        inside = run(
            "nsenter", f"--net=/proc/{os.getpid()}/fd/{held.fileno()}", "ip", "link"
        )
    assert inside.stdout.count("link/") == 1, "nothing but its loopback"
    left = run("ip", "link").stdout
    assert tap not in left
    assert "other" not in left
    assert not netns.path(tap).exists()
    assert await host.marked() == []


async def test_what_another_sandbox_is_marked_with_is_never_removed(
    host: HostNetwork,
) -> None:
    plan = walled()
    tap = plan.lease.tap
    await host.make_tap(plan, OTHER)
    with pytest.raises(NotOursError, match="left alone"):
        await host.remove_tap(tap, MARK, made=True)
    both = {Found("tap", tap, "s2"), Found("namespace", tap, "s2")}
    assert set(await host.marked()) == both
    await host.remove_tap(tap, OTHER)
    run("ip", "link", "add", tap, "type", "veth", "peer", "name", "other")
    run("ip", "link", "set", tap, "alias", OTHER)
    with pytest.raises(NotOursError, match=f"interface {tap} is marked"):
        await host.remove_tap(tap, MARK, made=True)
    assert tap in run("ip", "link").stdout


async def test_cut_off_at_any_moment_it_leaves_nothing_that_removing_does_not_take(
    host: HostNetwork,
) -> None:
    plan = walled()
    tap = plan.lease.tap
    await host.make_tap(plan, MARK)
    await host.remove_tap(tap, MARK)
    before = len(list(Path("/proc/self/fd").iterdir()))
    finished = False
    for milliseconds in range(200):
        making = asyncio.create_task(host.make_tap(plan, MARK))
        await asyncio.wait({making}, timeout=milliseconds / 1000)
        finished = making.done()
        making.cancel()
        await asyncio.wait({making})
        await host.remove_tap(tap, MARK)
        assert await host.marked() == []
        assert tap not in run("ip", "link").stdout
        assert not netns.path(tap).exists()
        if finished:
            break
    assert finished
    assert len(list(Path("/proc/self/fd").iterdir())) == before


KILLED = """
import asyncio, os, signal, sys
from tests.netns.test_namespace import MARK, POOL, walled
from vmdriver.host.confined import netns
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.network.host_network import HostNetwork
netns.give_name = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
host = HostNetwork("test", Ownership(0, 0), Threads("test", 2), POOL)
asyncio.run(host.make_tap(walled(), MARK))
"""


async def test_what_a_killed_driver_was_making_goes_with_it(host: HostNetwork) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], check=False)
    assert killed.returncode == -signal.SIGKILL
    tap, end = walled().lease.tap, time.monotonic() + 10
    while tap in run("ip", "link").stdout:
        assert time.monotonic() < end, "the kernel takes the link with its namespace"
    assert await host.marked() == []


def test_nothing_comes_or_goes_before_the_rules_are_loaded(around: Around) -> None:
    """A machine may be loaded meanwhile, by a QEMU that what it loads has taken over; it may even run."""
    plan = walled(egress="open", host_access=(9999,))
    space, lease = around.guest("g", plan, way_out=False), plan.lease
    around.serve("0.0.0.0", 22, space)
    frame = udp(plan, lease.guest_ip, bytes.fromhex("0800"))

    def passes() -> bool:
        with raw(space, "eth0") as guest, raw(None, lease.tap) as outside:
            guest.send(frame)
            return heard(outside, lambda frame: b"mark" in frame)

    assert "DOWN" in run("ip", "link", "show", lease.tap).stdout.split("state ")[1]
    with pytest.raises(OSError, match="Network is down"), raw(None, lease.tap) as host:
        host.send(frame)
    run("ip", "route", "add", plan.pool, "dev", "lo")  # so that answers come at once
    for source in (space, lease.tap):
        for target in (
            *((PUBLIC, 80), ("203.0.113.1", 8888), (ALIAS, PORT)),
            *((lease.uplink_ip, port) for port in (PORT, 8888)),
        ):
            assert around.dial(source, *target) is None, (source, target)
    assert around.dial(None, lease.guest_ip, 22) is None, "nor in"
    around.load(plan)
    assert passes()
    assert around.dial(space, ALIAS, PORT) == lease.guest_ip
    assert around.dial(space, PUBLIC, 80) == "203.0.113.1"


def test_when_the_hosts_rules_are_flushed_nothing_gets_through_that_did_not_before(
    around: Around,
) -> None:
    plan = walled(egress="open", host_access=(9999,))
    space = around.guest("g", plan)
    around.load(plan)
    around.serve("0.0.0.0", 22, space)
    around.serve("203.0.113.1", 7777)
    run("ip", "route", "add", plan.pool, "dev", "lo")  # so that answers come at once
    denied = [
        *(("127.0.0.1", port) for port in (PORT, 8888)),
        *((ALIAS, port) for port in (80, 8888)),
        *(("203.0.113.1", port) for port in (7777, 8888, PORT)),
        *((plan.lease.host_ip, port) for port in (PORT, 8888)),
        *((plan.lease.uplink_ip, port) for port in (PORT, 8888)),
        ("169.254.169.254", 80),
    ]

    def reached() -> list[tuple[str, int]]:
        return [target for target in denied if around.dial(space, *target) is not None]

    assert around.dial(space, ALIAS, PORT) == plan.lease.guest_ip
    assert around.dial(space, PUBLIC, 80) == "203.0.113.1"
    assert reached() == []
    run("nft", "flush", "ruleset")
    assert run("nft", "list", "ruleset").stdout == ""
    assert reached() == []
    for source in (None, f"{around.prefix}-public"):
        assert around.dial(source, plan.lease.guest_ip, 22) is None, "nor in"
    assert around.dial(space, ALIAS, PORT) is None, "what was allowed fails closed"
    around.load(plan)
    assert around.dial(space, ALIAS, PORT) == plan.lease.guest_ip
    assert around.dial(space, PUBLIC, 80) == "203.0.113.1"


def test_what_the_host_says_of_a_connection_reaches_the_guest(around: Around) -> None:
    plan = walled(egress="open")
    space = around.guest("g", plan)
    around.load(plan)
    name, seconds = around.refusal(space, "198.51.100.7", 80)
    assert (name, seconds < 5) == ("ENETUNREACH", True), "it has no route there"
    run("ip", "link", "set", "public", "mtu", "1300")
    assert run(
        *("ip", "netns", "exec", space, sys.executable, "-c", TOO_LARGE, PUBLIC)
    ).stdout.split() == ["EMSGSIZE", "1300"]


TOO_LARGE = """
import errno, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(0, 10, 2)
s.connect((sys.argv[1], 9)); end = time.monotonic() + 5
while time.monotonic() < end:
    try:
        s.send(bytes(1400)); time.sleep(0.05)
    except OSError as e:
        print(errno.errorcode[e.errno], s.getsockopt(0, 14)); break
"""


async def test_a_namespace_that_lost_its_name_is_found_by_its_machine(
    host: HostNetwork,
) -> None:
    """As one whose driver had mounts of its own; `sleep` stands for QEMU."""
    plan = walled()
    tap = plan.lease.tap
    await host.make_tap(plan, MARK)
    inside = ["ip", "netns", "exec", tap, "sh", "-c", "echo; exec sleep infinity"]
    with subprocess.Popen(inside, stdout=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        machine.stdout.readline()
        try:
            run("umount", str(netns.path(tap)))
            await host.find(plan, MARK)
            await host.load_rules(plan, MARK)
            assert (
                "chain frames"
                in run("ip", "netns", "exec", tap, "nft", "list", "ruleset").stdout
            )
            run("ip", "netns", "del", tap)
            with pytest.raises(NetworkError, match="is gone"):
                await host.find(plan, OTHER)
        finally:
            machine.kill()
    await host.remove_tap(tap, MARK)
    assert await host.marked() == [Found("firewall", f"vmdriver_{tap}", "s1")]


def udp(plan: NetworkPlan, source: str, ethertypes: bytes) -> bytes:
    """A frame with a UDP packet to the public server; `ethertypes` stands where the type is."""
    addresses = socket.inet_aton(source) + socket.inet_aton(PUBLIC)
    header = struct.pack("!BBHHHBBH", 0x45, 0, 32, 1, 0, 64, 17, 0) + addresses
    words = struct.unpack("!10H", header)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    checksum = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
    packet = header[:10] + checksum + header[12:] + struct.pack("!HHHH", 9, 9, 12, 0)
    first, rest = plan.lease.mac.split(":", 1)
    gateway = bytes.fromhex(f"{int(first, 16) ^ 0x40:02x}{rest.replace(':', '')}")
    guest = bytes.fromhex(plan.lease.mac.replace(":", ""))
    return gateway + guest + ethertypes + packet + b"mark"


def raw(namespace: str | None, interface: str) -> socket.socket:
    with netns.entered(namespace):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind((interface, 0))
    made.settimeout(0.4)
    return made


def heard(where: socket.socket, wanted: Callable[[bytes], bool]) -> bool:
    """Whether such a frame comes before it is quiet."""
    while True:
        try:
            if wanted(where.recv(2048)):
                return True
        except TimeoutError:
            return False


@pytest.mark.parametrize(
    ("what", "ethertypes", "source", "passes"),
    [
        ("plain IPv4", "0800", "10.0.128.2", True),
        ("a VLAN tag", "810000050800", "10.0.128.2", False),
        ("a priority tag", "810000000800", "10.0.128.2", False),
        ("a tag of providers", "88a800050800", "10.0.128.2", False),
        ("two tags", "88a80005810000050800", "10.0.128.2", False),
        ("its gateway's address", "0800", "10.0.128.1", False),
        ("the host's address in the block", "0800", "10.0.128.3", False),
        ("another sandbox's address", "0800", "10.0.128.6", False),
        ("the loopback's address", "0800", "127.0.0.1", False),
        ("no address", "0800", "0.0.0.0", False),
    ],
)
def test_only_plain_ipv4_of_its_own_comes_out(
    around: Around, what: str, ethertypes: str, source: str, passes: bool
) -> None:
    plan = walled(egress="open")
    space = around.guest("g", plan)
    around.load(plan)
    frame = udp(plan, source, bytes.fromhex(ethertypes))
    with raw(space, "eth0") as guest, raw(None, plan.lease.tap) as outside:
        for _ in range(2):
            guest.send(frame)
        assert heard(outside, lambda frame: b"mark" in frame) is passes, what


def test_the_guest_learns_its_gateways_mac_and_no_other(around: Around) -> None:
    plan = walled(egress="open")
    space, lease = around.guest("g", plan), plan.lease
    around.load(plan)
    mac = bytes.fromhex(lease.mac.replace(":", ""))

    def answered(asked: str, source: str = lease.guest_ip, sender: bytes = mac) -> bool:
        body = sender + socket.inet_aton(source) + bytes(6) + socket.inet_aton(asked)
        ask = b"\xff" * 6 + mac + bytes.fromhex("0806" + "0001080006040001") + body
        with raw(space, "eth0") as guest:
            guest.send(ask)
            reply = bytes.fromhex("08060001080006040002")
            return heard(guest, lambda frame: frame[12:22] == reply)

    assert answered(lease.host_ip)
    for address in ("127.0.0.1", lease.uplink_ip, "203.0.113.1", ALIAS, PUBLIC):
        assert not answered(address), address
    assert not answered(lease.host_ip, source="10.0.128.6")
    assert not answered(lease.host_ip, sender=b"\x02" * 6)
    run("nft", "flush", "ruleset")
    assert not answered("203.0.113.1")


FLOOD = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(1024, 6000):
    s.sendto(b"x", (sys.argv[1], port))
"""
OPEN_AND_CLOSE = """
import socket, sys
for _ in range(600):
    try:
        socket.create_connection((sys.argv[1], 80), 0.02).close()
    except OSError:
        pass
"""


@pytest.mark.parametrize("program", [FLOOD, OPEN_AND_CLOSE])
def test_a_machine_cannot_fill_what_follows_connections(
    around: Around, program: str
) -> None:
    """Neither the host's nor its own: also not with what has ended, which is not counted as a connection."""
    addresses = AddressPool("test", POOL)
    most = 64
    plan = walled(egress="open", max_connections=most, addresses=addresses)
    other = walled(
        egress="open", max_connections=most, addresses=addresses, sandbox_id="s2"
    )
    space, second = around.guest("g", plan), around.guest("g2", other, OTHER)
    around.load(plan)
    around.load(other, OTHER)
    before = int(Path(COUNT).read_text())
    run("ip", "netns", "exec", space, sys.executable, "-c", program, PUBLIC)
    inside = int(run("ip", "netns", "exec", plan.lease.tap, "cat", COUNT).stdout)
    assert inside <= 4 * most
    assert int(Path(COUNT).read_text()) - before <= 4 * most
    assert around.dial(second, PUBLIC, 80) is not None, "others have their own"


def test_a_qemu_that_was_taken_over_reaches_nothing_from_in_there(
    around: Around,
) -> None:
    plan = walled(egress="open")
    space, tap = around.guest("g", plan), plan.lease.tap
    around.serve("0.0.0.0", 22, space)
    around.load(plan)
    for target in (
        *((PUBLIC, 80), (ALIAS, PORT), ("127.0.0.1", PORT), ("203.0.113.1", 8888)),
        *((plan.lease.uplink_ip, PORT), (plan.lease.guest_ip, 22)),
    ):
        assert around.dial(tap, *target) is None, target
    open_it = (
        "import fcntl,os,struct,sys;t=os.open('/dev/net/tun',os.O_RDWR);"
        "fcntl.ioctl(t,0x400454ca,struct.pack('16sH22x',sys.argv[1].encode(),0x1002))"
    )
    as_nobody = ["setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all"]
    tried = run(
        *("ip", "netns", "exec", tap, *as_nobody, "/usr/bin/python3", "-Ic"),
        *(open_it, tap),
        check=False,
    )
    assert "PermissionError" in tried.stderr or "not permitted" in tried.stderr


async def test_how_long_it_takes(host: HostNetwork) -> None:
    """A machine's network is there in a small part of what its start takes; measured at 25 ms."""
    plan = walled()
    begun = time.monotonic()
    await host.make_tap(plan, MARK)
    await host.load_rules(plan, MARK)
    took = time.monotonic() - begun
    await host.remove_tap(plan.lease.tap, MARK)
    assert took < 3.0


async def test_whoever_gives_up_a_socket_in_a_namespace_leaves_none_behind(
    net: Net,
) -> None:
    """At whichever moment."""
    space = net.space("in")

    async def used() -> None:
        async with netlink_in(space) as inside:
            await inside.link_lookup(ifname="lo")

    for moment in range(12):
        task = asyncio.ensure_future(used())
        for _ in range(moment):
            await asyncio.sleep(0.0005 if moment % 2 else 0)
        task.cancel()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await asyncio.wait({task})
            for _ in range(3):
                await asyncio.sleep(0)
            del task
            gc.collect()
        assert not [str(one.message) for one in caught]
