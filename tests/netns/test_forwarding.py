"""Whether the host forwards IPv4: turned on for machines, and given back."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.netns.conftest import STRICT, Net, run
from tests.netns.test_guard import soon
from tests.netns.test_host_network import POOL, network_plan
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.network_guard import NetworkNews
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.forwarding import Forwarding
from vmdriver.network.guard.guard import NetworkGuard
from vmdriver.network.host_network import HostNetwork

SETTING = Path("/proc/sys/net/ipv4/ip_forward")


def mark(plan: NetworkPlan) -> str:
    return f"vmdriver/test/{plan.lease.index}"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    return tmp_path / "notes"


@pytest.fixture
async def files(net: Net) -> AsyncIterator[Threads]:
    """On a host that does not forward."""
    SETTING.write_text("0")
    files = Threads("test", 2)
    yield files
    files.close()


def driver(files: Threads, notes: Path, instance: str = "test") -> HostNetwork:
    """One that begins."""
    owner = Ownership(os.getuid(), os.getgid())
    return HostNetwork(instance, owner, files, POOL, notes)


def forwards() -> bool:
    return SETTING.read_text().strip() == "1"


def plans(count: int) -> list[NetworkPlan]:
    addresses = AddressPool("test", POOL)
    return [network_plan(f"s{number}", addresses) for number in range(count)]


async def test_it_is_on_from_the_first_machine_to_the_last(
    files: Threads, notes: Path
) -> None:
    host, (one, two) = driver(files, notes), plans(2)
    await host.prepare()
    assert not forwards(), "nobody needs it yet"
    await host.make_tap(one, mark(one))
    await host.make_tap(two, mark(two))
    assert forwards()
    await host.remove_tap(one.lease.tap, mark(one))
    assert forwards()
    for _ in range(2):
        await host.remove_tap(two.lease.tap, mark(two))
        assert not forwards()


async def test_a_host_that_had_it_on_keeps_it_on(files: Threads, notes: Path) -> None:
    SETTING.write_text("1")
    host, (one,) = driver(files, notes), plans(1)
    await host.make_tap(one, mark(one))
    await host.remove_tap(one.lease.tap, mark(one))
    assert forwards()


async def test_the_next_driver_gives_it_back(files: Threads, notes: Path) -> None:
    (one,) = plans(1)
    await driver(files, notes).make_tap(one, mark(one))
    following = driver(files, notes)
    await following.prepare()
    assert forwards(), "its machine is there"
    await following.remove_tap(one.lease.tap, mark(one))
    assert not forwards()


async def test_one_that_was_killed_before_it_had_a_machine_has_it_given_back(
    files: Threads, notes: Path
) -> None:
    await Forwarding(files, notes).need("killed")
    assert forwards()
    await driver(files, notes).prepare()
    assert not forwards()


async def test_machines_of_another_driver_need_it_as_well(
    files: Threads, notes: Path
) -> None:
    first, second, (one, two) = (
        driver(files, notes),
        driver(files, notes, "other"),
        plans(2),
    )
    await first.make_tap(one, mark(one))
    await second.make_tap(two, "vmdriver/other/s2")
    await first.remove_tap(one.lease.tap, mark(one))
    assert forwards()
    await second.remove_tap(two.lease.tap, "vmdriver/other/s2")
    assert not forwards(), "whoever is the last"


async def test_it_stays_on_for_others_who_route_by_now(
    files: Threads, notes: Path
) -> None:
    """They found it on, and have not turned it on themselves."""
    host, (one,) = driver(files, notes), plans(1)
    await host.make_tap(one, mark(one))
    run("nft", "-f", "-", input=STRICT)
    await host.remove_tap(one.lease.tap, mark(one))
    assert forwards()
    await host.prepare()
    assert forwards(), "it is theirs from then on"


async def test_a_firewall_that_was_there_before_is_no_reason(
    files: Threads, notes: Path
) -> None:
    run("nft", "-f", "-", input=STRICT)
    host, (one,) = driver(files, notes), plans(1)
    await host.make_tap(one, mark(one))
    assert forwards()
    await host.remove_tap(one.lease.tap, mark(one))
    assert not forwards()


async def test_it_is_turned_on_again_while_there_are_machines(
    files: Threads, notes: Path
) -> None:
    host, (one,) = driver(files, notes), plans(1)
    guard = NetworkGuard(host, files)
    guard.open()
    news: list[NetworkNews] = []
    guard.on_news(news.append)
    await host.make_tap(one, mark(one))
    await guard.keep(one, mark(one))
    for _ in range(3):
        SETTING.write_text("0")
        await soon(forwards, "it stays off")
    assert [n.restored for n in news] == [True], "told once"
    assert "forward" in news[0].message
    assert not guard.why_broken(one.lease.tap)
    await guard.leave(one.lease.tap)
    await host.remove_tap(one.lease.tap, mark(one))
    assert not forwards()
    await guard.close()
