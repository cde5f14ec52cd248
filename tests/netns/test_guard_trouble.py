"""What the guard works with hangs, is lost or changes: nothing is open meanwhile, and no other machine is forgotten."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from tests.netns.conftest import Net, run
from tests.netns.test_guard import MARK, Guarded, soon, walled
from tests.netns.test_host_network import POOL, network_plan
from vmdriver.errors import NetworkError
from vmdriver.host import process
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.network.guard.listener import Listener
from vmdriver.network.rules import nft

__all__ = ["walled"]
OTHER = "vmdriver/test/s2"


async def beside(guarded: Guarded) -> Guarded:
    """Another machine that the same guard keeps."""
    addresses = AddressPool("test", POOL)
    network_plan("s1", addresses)
    plan = network_plan("s2", addresses)
    plan = plan.model_copy(update={"namespace": plan.lease.tap})
    await guarded.host.make_tap(plan, OTHER)
    await guarded.guard.keep(plan, OTHER)
    return Guarded(guarded.guard, plan, guarded.host)


async def test_a_namespace_that_lost_its_name_holds_up_no_other_and_has_it_again(
    walled: Guarded,
) -> None:
    """`sleep` stands for QEMU."""
    second = await beside(walled)
    command = "echo; exec sleep infinity"
    inside = ["ip", "netns", "exec", walled.tap, "sh", "-c", command]
    with subprocess.Popen(inside, stdout=subprocess.PIPE) as machine:
        assert machine.stdout is not None
        machine.stdout.readline()
        try:
            own, others = walled.shape(), second.shape()
            later = f"sleep 0.3; nsenter --net=/proc/{machine.pid}/ns/net nft flush ruleset"  # fmt: skip
            with subprocess.Popen(["sh", "-c", later]):
                run("ip", "netns", "del", walled.tap)
            await asyncio.sleep(0.1)
            second.inside("nft", "flush", "ruleset")
            await soon(lambda: second.shape() == others, "the other is forgotten")
            name = Path("/run/netns", walled.tap)
            await soon(lambda: os.path.ismount(name), "it has no name", 5)
            await soon(lambda: walled.shape() == own, "it is not restored")
        finally:
            machine.kill()
    await second.guard.leave(second.tap)
    await second.host.remove_tap(second.tap, OTHER)


async def test_nothing_passes_while_the_program_that_loads_rules_hangs(
    walled: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, nft = tmp_path / "hangs", tmp_path / "nft"
    nft.write_text(
        f'#!/bin/sh\n[ -e "{hangs}" ] && {{ sleep 7; exit 1; }}\n'
        'PATH=${PATH#*:}; exec nft "$@"\n'
    )
    nft.chmod(0o755)
    before = walled.shape()
    hangs.touch()
    walled.inside("nft", "flush", "ruleset")
    path = f"{tmp_path}:{process.ENVIRONMENT['PATH']}"
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", path)

    def shut() -> bool:
        return "state DOWN" in run("ip", "link", "show", walled.tap).stdout

    await soon(shut, "it is open", 2)
    assert walled.news == [], "nor is it given up"
    await soon(lambda: walled.guard.why_broken(walled.tap), "it runs on", 5)
    assert "takes long" in walled.guard.why_broken(walled.tap)
    hangs.unlink()
    await soon(lambda: walled.shape() == before, "it is not as it was", 60)
    await soon(lambda: not walled.guard.why_broken(walled.tap), "it stays so", 20)
    assert [news.restored for news in walled.news] == [False, True]


async def test_an_address_that_the_host_has_only_now_is_denied_inside(
    walled: Guarded,
) -> None:
    """Where somebody leads what comes to it on to a container, say, only the rules inside do that."""
    second = await beside(walled)
    run("ip", "link", "add", "late", "type", "veth", "peer", "name", "later")
    run("ip", "link", "set", "late", "up")

    def denied(address: str) -> bool:
        return all(address in one.inside("nft", "list", "ruleset") for one in (walled, second))  # fmt: skip

    for number in range(7):  # as who begins many containers
        run("ip", "addr", "add", f"198.51.100.{number}/32", "dev", "late")
        await asyncio.sleep(0.15)
    await soon(lambda: denied("198.51.100.6"), "it may be reached")
    run("ip", "route", "add", "local", "192.0.2.7/32", "dev", "late")
    await soon(lambda: denied("192.0.2.7"), "it may be reached")
    await asyncio.sleep(0.3)
    before = walled.shape()
    walled.inside("nft", "flush", "ruleset")
    await soon(lambda: walled.shape() == before, "it is not restored")
    await soon(lambda: second.news, "it is not told")
    assert [news.restored for news in second.news] == [True], "told of that alone"
    assert walled.guard.why_broken(walled.tap) == ""
    await second.guard.leave(second.tap)
    await second.host.remove_tap(second.tap, OTHER)
    assert MARK in "".join(before)


@pytest.mark.timeout(10)
async def test_who_asks_a_listener_that_was_closed_hears_nothing(net: Net) -> None:
    listener = Listener()
    listener.start(lambda _: None)
    listener.close()
    listener.hear()


async def test_what_was_broken_for_the_driver_before_is_so_until_it_is_whole(
    walled: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a machine that stands still runs while its rules are being loaded."""
    await walled.guard.leave(walled.tap)

    async def refused(*_: object) -> None:
        raise NetworkError("nft: no")

    with monkeypatch.context() as failing:
        failing.setattr(nft, "load", refused)
        with pytest.raises(NetworkError):
            await walled.guard.keep(walled.plan, MARK, mend=True, broken="emptied")
        assert walled.guard.why_broken(walled.tap) == "emptied"
    await soon(lambda: not walled.guard.why_broken(walled.tap), "it stays broken", 10)
    assert walled.news[-1].restored


async def test_a_link_that_is_told_to_keep_nothing_is_as_it_was(
    walled: Guarded,
) -> None:
    """As libvirt does with the link of a tap's name, at each start."""
    looks = walled.guard.looks
    run("tc", "qdisc", "add", "dev", walled.tap, "root", "handle", "0:", "noqueue")
    await soon(lambda: walled.guard.looks > looks, "nobody looked")
    run("ip", "link", "set", walled.tap, "mtu", "900")
    await soon(lambda: walled.news, "nobody noticed")
    assert "queue" not in walled.news[0].message
