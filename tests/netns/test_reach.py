"""What a machine reaches as it is explained, and as the kernel does it with the rules that are loaded."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.netns.conftest import Net, run
from tests.netns.guests import in_its_namespace
from tests.netns.test_host_network import ALIAS, POOL, network_plan
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.reach.explained import Destination, deciding, rules
from vmdriver.network.reach.replica import live_rules, outcomes

MARK = "vmdriver/test/s1"
HOST = ("198.18.7.1/32",)
SERVER = "203.0.113.53"
TRIED = [
    Destination(address, port, kind)
    for address, port in (
        *((ALIAS, port) for port in (53, 80, 17670, 11434)),
        *(("198.18.7.1", port) for port in (22, 53)),
        *((SERVER, port) for port in (53, 80)),
        *((f"10.0.128.{last}", 80) for last in (1, 3, 6)),
        *((ip, 80) for ip in ("169.254.169.254", "127.0.0.1", "240.0.0.9")),
        *((ip, 443) for ip in ("10.9.9.9", "192.0.2.77", "203.0.113.80", "8.8.8.8")),
        *(("203.0.113.81", port) for port in (8443, 8444)),
    )
    for kind in ("tcp", "udp")
]


@pytest.fixture
async def host(net: Net, tmp_path: Path) -> AsyncIterator[HostNetwork]:
    threads = Threads("test", 2)
    owner = Ownership(os.getuid(), os.getgid())
    run("ip", "addr", "add", "198.18.7.1/32", "dev", "lo")
    yield HostNetwork("test", owner, threads, POOL, tmp_path / "notes")
    threads.close()


async def made(net: Net, host: HostNetwork, plan: NetworkPlan) -> NetworkPlan:
    """A machine's network of that plan, with its rules."""
    plan = plan.model_copy(update={"namespace": plan.lease.tap})
    await host.make_tap(plan, MARK)
    net.spaces.append(plan.lease.tap)
    await host.load_rules(plan, MARK)
    return plan


@pytest.mark.parametrize(
    "changes",
    [
        {"egress": "open"},
        {"egress": "private-denied", "dns": (SERVER,), "denied_networks": ("192.0.2.0/24",)},
        {"egress": "none", "dns": (ALIAS,)},
        {"egress": "private-denied", "dns": (ALIAS,), "host_access": (11434, 80)},
        {"egress": "open", "dns": (ALIAS,), "host_access": "all", "max_connections": 100},
        {"egress": "private-denied", "egress_allow": ("10.9.0.0/16", "169.254.0.0/16"), "egress_deny": ("8.8.8.0/24",)},
        {"egress": "none", "egress_allow": ("203.0.113.0/24",), "egress_deny": ("203.0.113.80/32",)},
        {"egress": "open", "egress_only": ("203.0.113.0/24", "10.0.128.0/17"), "egress_deny": ("203.0.113.80/32",)},
        {"egress": "private-denied", "egress_only": ("10.0.0.0/8",), "egress_allow": ("10.9.9.0/24", "8.8.8.8/32")},
        {"egress": "open", "egress_only": (), "egress_allow": ("10.9.9.0/24",)},
        {"egress": "none", "gateway_address": "203.0.113.81", "gateway_port": 8443},
    ],
    ids=str,
)  # fmt: skip
async def test_every_destination_fares_as_it_is_explained(
    net: Net, host: HostNetwork, changes: dict[str, object]
) -> None:
    plan = await made(net, host, network_plan(**changes))
    known = rules(plan, HOST)
    found = await outcomes(plan, await live_rules(plan.lease.tap), TRIED)
    for to, outcome in zip(TRIED, found, strict=True):
        rule = known[deciding(known, to)]
        assert outcome.reached is rule.reached, f"{to}: {outcome}, {rule}"
        # A loopback address that comes over a wire: the kernel drops it before any rule.
        assert (outcome.verdict == "dropped") is (to.address == "127.0.0.1"), to
        if to.address == "203.0.113.80" and outcome.reached:
            assert outcome.leads_to == (to.address, to.port)
        if to == Destination(ALIAS, 80) and outcome.reached:
            assert outcome.leads_to == (plan.lease.uplink_ip, 80)
        if to.address == ALIAS and to.port == 53 and plan.asks_host:
            assert outcome.verdict == "answered"


async def test_what_a_real_guest_finds_is_what_is_said_of_it(
    net: Net, host: HostNetwork
) -> None:
    space = net.space("public")
    net.link("public", "public", space, "203.0.113.1/24", "203.0.113.80/24")
    net.serve("203.0.113.80", 443, space)
    plan = await made(net, host, network_plan(egress="open"))
    guest = in_its_namespace(net, "guest", plan)
    for to in (Destination("203.0.113.80", 443), Destination("10.0.128.9", 443)):
        (outcome,) = await outcomes(plan, await live_rules(plan.lease.tap), [to])
        assert outcome.reached is (net.dial(guest, to.address, to.port) is not None)


async def test_rules_that_somebody_has_changed_are_tried_as_they_are(
    net: Net, host: HostNetwork
) -> None:
    plan = await made(net, host, network_plan(egress="open"))
    tap, to = plan.lease.tap, Destination("203.0.113.80", 443)
    inside = ("ip", "netns", "exec", tap, "nft")
    table = ("inet", f"vmdriver_{tap}")
    run(*inside, "insert", "rule", *table, "forward", "tcp", "dport", "443", "drop")
    (outcome,) = await outcomes(plan, await live_rules(tap), [to])
    assert outcome.verdict == "dropped"
    run(*inside, "flush", "ruleset")
    (outcome,) = await outcomes(plan, await live_rules(tap), [to])
    assert outcome.verdict == "leaves", "without rules everything passes in there"


async def test_nothing_is_left_of_a_trial_and_the_machine_does_not_notice(
    net: Net, host: HostNetwork
) -> None:
    plan = await made(net, host, network_plan(egress="open"))
    inside = ("ip", "netns", "exec", plan.lease.tap)

    def there() -> tuple[str, ...]:
        return (
            run("ip", "netns", "list").stdout,
            str(
                [
                    line.split()[1]
                    for line in run("ip", "-o", "link").stdout.splitlines()
                ]
            ),
            run(*inside, "nft", "list", "ruleset").stdout,
            run(*inside, "cat", "/proc/net/nf_conntrack", check=False).stdout,
        )

    before, descriptors = there(), len(os.listdir("/proc/self/fd"))
    await outcomes(plan, await live_rules(plan.lease.tap), TRIED[:8])
    assert there() == before
    assert len(os.listdir("/proc/self/fd")) == descriptors
