"""Taps and tables on a real kernel, in a namespace of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.conftest import STRICT, Net, run
from vmdriver.errors import ConfigError, NetworkError
from vmdriver.host import process
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Found, Ownership, Taken
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.host_network import HostNetwork

POOL = "10.0.128.0/17"
ALIAS = "192.168.127.254"


def network_plan(
    sandbox_id: str = "s1", addresses: AddressPool | None = None, **changes: object
) -> NetworkPlan:
    lease = (addresses or AddressPool("test", POOL)).take(sandbox_id, Taken())
    values = {
        "lease": lease,
        "gateway_port": 17670,
        "egress": "private-denied",
        "host_alias": ALIAS,
        "pool": POOL,
        **changes,
    }
    return NetworkPlan(**values)


@pytest.fixture
def host(net: Net) -> Iterator[HostNetwork]:
    files = Threads("test", 2)
    yield HostNetwork("test", Ownership(os.getuid(), os.getgid()), files, POOL)
    files.close()


async def test_a_firewall_program_that_is_killed_once_is_run_again(
    host: HostNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that starts must neither end for it, nor overlook a table."""
    plan = network_plan()
    killed = tmp_path / "killed"
    nft = tmp_path / "nft"
    nft.write_text(
        f'#!/bin/sh\n[ -e "{killed}" ] || {{ touch "{killed}"; kill -9 $$; }}\n'
        'PATH=${PATH#*:}; exec nft "$@"\n'
    )
    nft.chmod(0o755)
    path = f"{tmp_path}:{process.ENVIRONMENT['PATH']}"
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", path)
    monkeypatch.setenv("PATH", path)
    await host.load_rules(plan, "vmdriver/test/s1")
    killed.unlink()
    found = Found("firewall", f"vmdriver_{plan.lease.tap}", "s1")
    assert await host.marked() == [found]
    killed.unlink()
    await host.remove_rules(plan.lease.tap)
    assert await host.marked() == []


async def test_a_tap_is_made_marked_addressed_and_removed(host: HostNetwork) -> None:
    plan = network_plan()
    tap = plan.lease.tap
    for _ in range(2):  # an own leftover is replaced
        await host.make_tap(plan, "vmdriver/test/s1")
    shown = run("ip", "-d", "addr", "show", tap).stdout
    assert "10.0.128.1/30" in shown
    assert "vmdriver/test/s1" in shown
    assert "UP" in shown
    assert Path(f"/proc/sys/net/ipv4/conf/{tap}/route_localnet").read_text() == "1\n"
    assert await host.marked() == [Found("tap", tap, "s1")]
    for _ in range(2):
        await host.remove_tap(tap, "vmdriver/test/s1")
    assert tap not in run("ip", "link").stdout


async def test_an_interface_of_somebody_else_is_left_alone(host: HostNetwork) -> None:
    plan = network_plan()
    run("ip", "link", "add", plan.lease.tap, "type", "veth", "peer", "name", "other")
    run("ip", "link", "set", plan.lease.tap, "alias", "precious")
    with pytest.raises(NetworkError, match="left alone"):
        await host.make_tap(plan, "vmdriver/test/s1")
    with pytest.raises(NetworkError, match="left alone"):
        await host.remove_tap(plan.lease.tap, "vmdriver/test/s1")
    assert plan.lease.tap in run("ip", "link").stdout


@pytest.mark.parametrize(
    "change", ["ip link set {tap} alias nothing", "ip link set {tap} down name other"]
)
async def test_a_tap_of_ours_is_removed_under_another_mark_or_name(
    host: HostNetwork, change: str
) -> None:
    plan = network_plan()
    await host.make_tap(plan, "vmdriver/test/s1")
    run(*change.format(tap=plan.lease.tap).split())
    await host.remove_tap(plan.lease.tap, "vmdriver/test/s1", made=True)
    left = run("ip", "link").stdout
    assert plan.lease.tap not in left
    assert "other" not in left


async def test_an_address_that_another_driver_has_given_away_is_not_used_twice(
    host: HostNetwork,
) -> None:
    """Of one that has the same pool; its sandbox was started while ours was stopped."""
    other = network_plan("s2")
    await host.make_tap(other, "vmdriver/other/s2")
    plan = network_plan()
    with pytest.raises(NetworkError, match=r"10\.0\.128\.1 is in use") as refused:
        await host.make_tap(plan, "vmdriver/test/s1")
    assert other.lease.tap in str(refused.value)
    assert plan.lease.tap not in run("ip", "link").stdout
    await host.remove_tap(other.lease.tap, "vmdriver/other/s2")
    await host.make_tap(plan, "vmdriver/test/s1")


@pytest.mark.parametrize("peer", ["192.168.77.1", "0.0.0.0"])
async def test_an_own_address_of_a_link_with_a_peer_is_in_use(
    host: HostNetwork, peer: str
) -> None:
    """As a tunnel has it, also one whose other end has no address."""
    plan = network_plan()
    run("ip", "tuntap", "add", "far", "mode", "tun")
    own = plan.lease.host_ip
    run("ip", "addr", "add", own, "peer", peer, "dev", "far")
    taken = await host.taken()
    assert own in taken.addresses
    assert (peer in taken.addresses) is (peer != "0.0.0.0")
    with pytest.raises(NetworkError, match="in use"):
        await host.make_tap(plan, "vmdriver/test/s1")


async def test_a_table_is_loaded_replaced_found_and_removed(host: HostNetwork) -> None:
    plan = network_plan()
    for _ in range(2):
        await host.load_rules(plan, "vmdriver/test/s1")
    assert [(f.kind, f.sandbox_id) for f in await host.marked()] == [("firewall", "s1")]
    table = (await host.marked())[0].name
    for _ in range(2):
        await host.remove_rules(table)
    assert await host.marked() == []


async def test_a_pool_in_use_is_refused(host: HostNetwork, net: Net) -> None:
    await host.prepare()
    await host.make_tap(network_plan(), "vmdriver/test/s1")
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    await host.check_pool()  # our own taps' routes do not count
    run("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    run("ip", "addr", "add", "10.0.130.1/24", "dev", "lan0")
    run("ip", "link", "set", "lan0", "up")
    assert await host.own_networks() == ("10.0.130.0/24",)
    with pytest.raises(ConfigError, match="10.0.130.0/24"):
        await host.check_pool()


async def test_the_supervisors_inner_network_is_refused_as_a_pool(net: Net) -> None:
    files = Threads("test", 1)
    with pytest.raises(ConfigError, match="10.200.0.0/24"):
        await HostNetwork("test", Ownership(0, 0), files, "10.200.0.0/16").check_pool()
    files.close()


async def test_forward_chains_that_drop_are_named(host: HostNetwork) -> None:
    run("nft", "-f", "-", input=STRICT)
    assert await host.foreign_drops() == ["ip strict forwarding"]
