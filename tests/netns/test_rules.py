"""What the rule set lets through, tried with real packets between namespaces."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.netns.conftest import STRICT, Net, run
from tests.netns.guests import Around
from tests.netns.test_host_network import ALIAS, POOL
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.network.host_network import HostNetwork

PORT = 17670


@pytest.fixture
def host(net: Net) -> Iterator[HostNetwork]:
    files = Threads("test", 2)
    yield HostNetwork("test", Ownership(os.getuid(), os.getgid()), files, POOL)
    files.close()


@pytest.fixture(params=["in the host", "in a namespace"])
def around(net: Net, host: HostNetwork, request: pytest.FixtureRequest) -> Around:
    """A host with a public server, a private one, a metadata service, and its gateway on the loopback."""
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    for name, here, there in (
        ("public", "203.0.113.1/24", "203.0.113.10/24"),
        ("private", "10.99.0.1/24", "10.99.0.10/24"),
        ("meta", "169.254.169.1/24", "169.254.169.254/24"),
        ("cgnat", "100.64.0.1/24", "100.64.0.10/24"),
    ):
        space = net.space(name)
        net.link(name, name, space, here, there)
        net.serve(there.split("/")[0], 80, space)
    net.serve("127.0.0.1", PORT)
    net.serve("127.0.0.1", 9999)
    net.serve("0.0.0.0", 8888)
    return Around(net, host, request.param == "in a namespace")


def refused(around: Around, space: str, address: str, port: int) -> bool:
    """Whether a reset came, and long before a second packet would have been sent."""
    name, seconds = around.refusal(space, address, port)
    return name == "ECONNREFUSED" and seconds < 0.9


def test_the_gateway_on_the_loopback_is_reached_and_nothing_else_of_the_host(
    around: Around,
) -> None:
    plan = around.plan(gateway_port=PORT)
    space = around.guest("g", plan)
    around.load(plan)
    host = plan.lease.host_ip
    assert around.dial(space, ALIAS, PORT) == plan.lease.guest_ip
    assert refused(around, space, ALIAS, 9999)
    assert refused(around, space, ALIAS, 8888), "not even what listens everywhere"
    assert refused(around, space, host, PORT)
    assert refused(around, space, host, 8888)
    run("ip", "-n", space, "route", "add", "127.0.0.2/32", "via", host)
    assert around.dial(space, "127.0.0.2", PORT) is None
    assert refused(around, space, "203.0.113.1", 8888), (
        "nor at another of the host's addresses"
    )
    assert refused(around, space, "203.0.113.1", PORT)


@pytest.mark.parametrize(
    ("access", "reached", "not_reached"),
    [("all", (PORT, 9999, 8888), ()), ((9999,), (PORT, 9999), (8888,))],
)
@pytest.mark.parametrize("egress", ["open", "private-denied", "none"])
def test_services_of_the_hosts_loopback_are_reached_as_host_access_says(
    around: Around,
    access: object,
    reached: tuple[int, ...],
    not_reached: tuple[int, ...],
    egress: str,
) -> None:
    plan = around.plan(gateway_port=PORT, host_access=access, egress=egress)
    space = around.guest("g", plan)
    around.serve("127.0.0.3", 7777)
    around.load(plan)
    for port in reached:
        assert around.dial(space, ALIAS, port) == plan.lease.guest_ip, port
    for port in not_reached:
        assert refused(around, space, ALIAS, port), port
    assert refused(around, space, ALIAS, 6666), "where nobody listens"
    for address, port in (
        (plan.lease.host_ip, 8888),
        ("203.0.113.1", 8888),
        (ALIAS, 7777),
    ):
        assert refused(around, space, address, port), "it is 127.0.0.1's ports alone"
    assert around.refusal(space, ALIAS, PORT, "udp")[0] == "EHOSTUNREACH"


def test_services_of_the_host_are_reached_beside_a_gateway_elsewhere(
    around: Around,
) -> None:
    elsewhere = {"gateway_port": 80, "gateway_address": "10.99.0.10"}
    plan = around.plan(**elsewhere, host_access=(9999,))
    space = around.guest("g", plan)
    around.load(plan)
    assert around.dial(space, ALIAS, 9999) is not None
    assert around.dial(space, "10.99.0.10", 80) is not None
    assert refused(around, space, ALIAS, 80), "the gateway's port is not the host's"
    around.load(around.plan(**elsewhere))
    assert refused(around, space, ALIAS, 9999)


def test_the_address_of_the_host_leads_nowhere_else(around: Around) -> None:
    plan = around.plan(gateway_port=PORT, egress="open", host_alias="203.0.113.10")
    space = around.guest("g", plan)
    around.load(plan)
    assert around.dial(space, "203.0.113.10", PORT) == plan.lease.guest_ip
    assert refused(around, space, "203.0.113.10", 80), "although somebody has it"


def test_a_plan_from_before_there_was_an_alias_keeps_its_way_to_the_gateway(
    around: Around,
) -> None:
    plan = around.plan(gateway_port=PORT, host_alias=None)
    space = around.guest("g", plan)
    around.load(plan)
    assert around.dial(space, plan.lease.host_ip, PORT) == plan.lease.guest_ip
    assert refused(around, space, plan.lease.host_ip, 9999)


def test_what_is_refused_is_refused_at_once(around: Around) -> None:
    addresses = AddressPool("test", "10.0.128.0/17")
    plan = around.plan("s1", addresses, gateway_port=PORT)
    other = around.plan("s2", addresses, gateway_port=PORT)
    around.guest("g2", other, "vmdriver/test/s2")
    around.load(
        other, "vmdriver/test/s2"
    )  # its table comes first in the kernel's order
    space = around.guest("g", plan)
    around.load(plan)
    run("ip", "route", "add", "default", "via", "203.0.113.10")
    private, meta = "10.99.0.10", "169.254.169.254"
    for address in (private, meta, "100.64.0.10", other.lease.guest_ip, "10.0.250.1"):
        assert refused(around, space, address, 80), address
    for address in (private, meta, other.lease.guest_ip, plan.lease.host_ip):
        name, seconds = around.refusal(space, address, 53, "udp")
        assert (name, seconds < 5) == ("EHOSTUNREACH", True), address
    around.load(plan.model_copy(update={"egress": "none"}))
    assert refused(around, space, "203.0.113.10", 80)
    assert around.refusal(space, "203.0.113.10", 53, "udp")[0] == "EHOSTUNREACH"
    assert around.dial(space, ALIAS, PORT) is not None


@pytest.mark.parametrize(
    ("egress", "public", "private"),
    [("open", True, True), ("private-denied", True, False), ("none", False, False)],
)
def test_egress(around: Around, egress: str, public: bool, private: bool) -> None:
    plan = around.plan(gateway_port=PORT, egress=egress)
    space = around.guest("g", plan)
    around.load(plan)
    seen = around.dial(space, "203.0.113.10", 80)
    assert (seen is not None) is public
    if public:
        assert seen == "203.0.113.1", "under the host's address"
    assert (around.dial(space, "10.99.0.10", 80) is not None) is private
    assert (around.dial(space, "100.64.0.10", 80) is not None) is private
    assert around.dial(space, "169.254.169.254", 80) is None, "metadata services never"
    assert around.dial(space, ALIAS, PORT) is not None


def test_the_hosts_own_networks_count_as_private(around: Around) -> None:
    plan = around.plan(gateway_port=PORT, denied_networks=("203.0.113.0/24",))
    space = around.guest("g", plan)
    around.load(plan)
    assert around.dial(space, "203.0.113.10", 80) is None


def test_a_name_server_that_is_configured_is_reached_although_private(
    around: Around,
) -> None:
    plan = around.plan(gateway_port=PORT, dns=("10.99.0.10",))
    space = around.guest("g", plan)
    around.load(plan)
    around.serve("10.99.0.10", 53, f"{around.prefix}-private")
    assert around.dial(space, "10.99.0.10", 53) is not None
    assert around.dial(space, "10.99.0.10", 80) is None


def test_a_gateway_elsewhere_is_reached_although_private(around: Around) -> None:
    plan = around.plan(gateway_port=80, gateway_address="10.99.0.10", egress="none")
    space = around.guest("g", plan)
    around.load(plan)
    assert around.dial(space, "10.99.0.10", 80) is not None
    assert around.dial(space, "203.0.113.10", 80) is None


def test_a_forged_address_or_mac_gets_nowhere(around: Around) -> None:
    plan = around.plan(gateway_port=PORT, egress="open")
    space = around.guest("g", plan)
    around.load(plan)
    run("ip", "-n", space, "addr", "add", "203.0.113.77/32", "dev", "eth0")
    assert around.dial(space, "203.0.113.10", 80, "203.0.113.77") is None
    assert around.dial(space, "203.0.113.10", 80) is not None
    run("ip", "-n", space, "link", "set", "eth0", "address", "02:00:00:00:00:99")
    assert around.dial(space, "203.0.113.10", 80) is None
    assert around.dial(space, ALIAS, PORT) is None


def test_nobody_can_reach_into_the_sandbox(around: Around) -> None:
    plan = around.plan(gateway_port=PORT, egress="open")
    space = around.guest("g", plan)
    around.serve("0.0.0.0", 22, space)
    own = "203.0.113.1"
    assert around.dial(None, plan.lease.guest_ip, 22, own) is not None, (
        "without rules the way is open"
    )
    around.load(plan)
    assert around.dial(f"{around.prefix}-public", plan.lease.guest_ip, 22) is None
    assert around.dial(None, plan.lease.guest_ip, 22) is None, "nor the host itself"
    assert around.dial(None, plan.lease.guest_ip, 22, own) is None


def test_sandboxes_cannot_reach_each_other(around: Around) -> None:
    addresses = AddressPool("test", "10.0.128.0/17")
    first, second = (
        around.plan(n, addresses, gateway_port=PORT, egress="open")
        for n in ("s1", "s2")
    )
    one = around.guest("g1", first)
    two = around.guest("g2", second, "vmdriver/test/s2")
    for plan, owner in ((first, "vmdriver/test/s1"), (second, "vmdriver/test/s2")):
        around.load(plan, owner)
    around.serve("0.0.0.0", 80, two)
    assert around.dial(one, second.lease.guest_ip, 80) is None
    assert around.dial(one, second.lease.host_ip, PORT) is None, (
        "nor the gateway by another's address"
    )
    assert around.dial(one, "203.0.113.10", 80) is not None


def test_ipv6_is_dropped(around: Around) -> None:
    plan = around.plan(gateway_port=PORT, egress="open")
    space = around.guest("g", plan)
    run(
        *around.inside(plan),
        "sysctl",
        "-qw",
        f"net.ipv6.conf.{plan.lease.tap}.disable_ipv6=0",
    )
    run(
        *around.inside(plan),
        "ip",
        "addr",
        "add",
        "fd00::1/64",
        "dev",
        plan.lease.tap,
        "nodad",
    )
    run("ip", "-n", space, "addr", "add", "fd00::2/64", "dev", "eth0", "nodad")
    server = ("::", 7777)
    script = "import socket,sys;s=socket.socket(socket.AF_INET6);s.settimeout(.7);print(s.connect_ex(('fd00::1',7777)))"
    listener = subprocess.Popen(
        [
            *around.inside(plan),
            "python3",
            "-c",
            f"import socket,time;s=socket.create_server({server!r},family=socket.AF_INET6);print(1,flush=True);time.sleep(20)",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        listener.stdout.readline()
        assert (
            run("ip", "netns", "exec", space, "python3", "-c", script).stdout.strip()
            == "0"
        )
        around.load(plan)
        assert (
            run("ip", "netns", "exec", space, "python3", "-c", script).stdout.strip()
            != "0"
        )
    finally:
        listener.kill()
        listener.wait()
        listener.stdout.close()


def test_beside_a_table_that_drops_all_forwarding_the_gateway_is_reached_and_nothing_leaks(
    around: Around,
) -> None:
    plan = around.plan(gateway_port=PORT, egress="open")
    space = around.guest("g", plan)
    run("nft", "-f", "-", input=STRICT)
    around.load(plan)
    assert around.dial(space, ALIAS, PORT) is not None
    assert around.dial(space, "203.0.113.10", 80) is None, (
        "an accept of ours cannot overrule another table's drop"
    )
