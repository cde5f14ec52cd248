"""Somebody empties tables: what a machine's network is made of is there again at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.netns.conftest import Net, run
from tests.netns.test_host_network import POOL, network_plan
from vmdriver.host import process
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.network_guard import NetworkNews
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.guard import NetworkGuard
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.ruleset import table_name

MARK = "vmdriver/test/s1"
IN_TIME_S = 3.0
"""On a busy machine; what is promised is one second."""


async def soon(
    condition: Callable[[], object], what: str, limit_s: float = IN_TIME_S
) -> None:
    """It is so within that time."""
    try:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(what) from None


class Guarded:
    """A machine's network, kept."""

    def __init__(self, guard: NetworkGuard, plan: NetworkPlan) -> None:
        self.guard, self.plan = guard, plan
        self.tap = plan.lease.tap
        self.news: list[NetworkNews] = []
        guard.on_news(self.news.append)

    def rules(self) -> str:
        shown = run("nft", "list", "table", "inet", table_name(self.tap), check=False)
        return shown.stdout

    async def comes_back(self, rules: str, limit_s: float = IN_TIME_S) -> None:
        await soon(lambda: self.rules() == rules, "it is not restored", limit_s)


@pytest.fixture
async def guarded(net: Net) -> AsyncIterator[Guarded]:
    files = Threads("test", 2)
    host = HostNetwork("test", Ownership(os.getuid(), os.getgid()), files, POOL)
    guard = NetworkGuard(host, files)
    guard.open()
    plan = network_plan()
    await host.make_tap(plan, MARK)
    await guard.keep(plan, MARK)
    yield Guarded(guard, plan)
    await guard.close()
    files.close()


CHANGES = {
    "everything is emptied": "flush ruleset",
    "its table is deleted": "delete table inet {table}",
    "its rules are emptied": "flush table inet {table}",
    "a chain is emptied": "flush chain inet {table} forward",
    "a rule is put before others": "insert rule inet {table} forward accept",
    "the table sleeps": "add table inet {table} {{ flags dormant; }}",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_what_is_changed_is_restored_and_told(
    guarded: Guarded, change: str
) -> None:
    rules = guarded.rules()
    run("nft", change.format(table=table_name(guarded.tap)))
    assert guarded.rules() != rules
    await guarded.comes_back(rules)
    await soon(lambda: bool(guarded.news), "it is not told")
    (news,) = guarded.news
    assert news.restored
    assert table_name(guarded.tap) in news.message
    assert "nft (process " in news.message, "by whom"
    assert not guarded.guard.why_broken(guarded.tap)


async def test_what_others_do_to_their_own_tables_concerns_nobody(
    guarded: Guarded,
) -> None:
    """Such as docker or firewalld, all the time."""
    await asyncio.sleep(0.1)
    looks = guarded.guard.looks
    for _ in range(20):
        run(
            "nft",
            "add table ip others { chain c { counter; }; }; flush table ip others",
        )
    await asyncio.sleep(0.1)
    assert guarded.guard.looks == looks
    assert guarded.news == []
    run("nft", "flush ruleset")
    await soon(lambda: guarded.guard.looks > looks, "it does not look at all")


async def test_what_we_load_ourselves_is_no_change(guarded: Guarded) -> None:
    for _ in range(3):
        await guarded.guard.keep(guarded.plan, "vmdriver/test/other")
    await asyncio.sleep(0.2)
    assert guarded.news == []
    assert "vmdriver/test/other" in guarded.rules()


async def test_nothing_is_restored_of_what_is_kept_no_more(guarded: Guarded) -> None:
    run("nft", "flush ruleset")
    await guarded.guard.leave(guarded.tap)
    run("nft", "flush ruleset")
    await asyncio.sleep(0.3)
    assert guarded.rules() == ""


async def test_who_empties_tables_in_a_loop_stops_the_machine_and_keeps_nobody_busy(
    guarded: Guarded,
) -> None:
    rules = guarded.rules()
    loop = subprocess.Popen(["sh", "-c", "while :; do nft flush ruleset; done"])
    try:
        await soon(lambda: guarded.guard.why_broken(guarded.tap), "it runs on", 5)
        told = len(guarded.news)
        begun = os.times()
        await asyncio.sleep(1)
        used = os.times()
        assert used.user + used.system - begun.user - begun.system < 0.5
        assert len(guarded.news) == told <= 2, "told once that it broke"
    finally:
        loop.terminate()
        loop.wait()
    await soon(lambda: not guarded.guard.why_broken(guarded.tap), "it stays so", 20)
    assert guarded.rules() == rules
    assert guarded.news[-1].restored


async def test_a_program_that_fails_twice_breaks_it_and_it_is_whole_again_later(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails, nft = tmp_path / "fails", tmp_path / "nft"
    nft.write_text(
        f'#!/bin/sh\n[ -e "{fails}" ] && {{ echo no more memory >&2; exit 1; }}\n'
        'PATH=${PATH#*:}; exec nft "$@"\n'
    )
    nft.chmod(0o755)
    path = f"{tmp_path}:{process.ENVIRONMENT['PATH']}"
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", path)
    monkeypatch.setenv("PATH", path)
    rules = guarded.rules()
    run("nft", "flush ruleset")
    fails.touch()
    await soon(lambda: guarded.guard.why_broken(guarded.tap), "nobody says so")
    assert [news.restored for news in guarded.news] == [False]
    assert "no more memory" in guarded.guard.why_broken(guarded.tap)
    fails.unlink()
    await guarded.comes_back(rules, 6)
    await soon(lambda: not guarded.guard.why_broken(guarded.tap), "it stays so", 5)
    assert [news.restored for news in guarded.news] == [False, True]


async def test_events_that_were_lost_have_everything_compared(
    guarded: Guarded,
) -> None:
    """Nobody says that the table was emptied: there were too many others before."""
    rules = guarded.rules()
    storm = "".join(f"add table ip t{n}\ndelete table ip t{n}\n" for n in range(20000))
    run("nft", "-f", "-", input=storm)
    run("nft", "flush ruleset")
    assert guarded.rules() == ""
    await guarded.comes_back(rules)


async def test_hundreds_of_machines_are_whole_again_soon_after_a_flush(
    net: Net,
) -> None:
    files = Threads("test", 2)
    host = HostNetwork("test", Ownership(os.getuid(), os.getgid()), files, POOL)
    guard = NetworkGuard(host, files)
    guard.open()
    addresses = AddressPool("test", POOL)
    plans = [network_plan(f"s{number}", addresses) for number in range(30)]
    for plan in plans:
        await guard.keep(plan, MARK)
    run("nft", "flush ruleset")

    def all_there() -> bool:
        shown = run("nft", "list", "tables").stdout
        return all(table_name(plan.lease.tap) in shown for plan in plans)

    await soon(all_there, "some are not restored", 10)
    await guard.close()
    files.close()
