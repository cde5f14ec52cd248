"""Somebody moves, renames or sets links otherwise, or changes how packets are queued: it is as it was made again."""

from __future__ import annotations

import re

import pytest

from tests.netns.conftest import Net, run
from tests.netns.test_guard import MARK, Guarded, soon, walled

__all__ = ["walled"]
INSIDE = {
    "the way out has another name": "ip link set out down name other",
    "the tap has another name": "ip link set {tap} down name other",
    "the tap has another name while it is up": "ip link set {tap} name other",
    "the way out has another MAC": "ip link set out address 02:00:00:00:00:77",
    "the tap has another MTU": "ip link set {tap} mtu 900",
    "the way out has another MTU": "ip link set out mtu 900",
    "a neighbour was added": "ip neigh add 10.0.0.9 lladdr 02:00:00:00:00:77 dev out nud permanent",
    "something is local": "ip route add local 203.0.113.9 dev lo",
    "its loopback has an address": "ip addr add 10.77.0.9/24 dev lo",
    "its loopback is up": "ip link set lo up",
    "the tap has a mark": "ip link set {tap} alias nothing",
    "the way out has a mark": "ip link set out alias nothing",
    "no table of routes is asked": "ip rule del pref 32766",
}
OUTSIDE = {
    "the pair has another name": "ip link set {tap} down name other",
    "the pair is somewhere else": "ip link set {tap} netns {other}",
    "the pair has another MTU": "ip link set {tap} mtu 900",
    "the pair has another MAC": "ip link set {tap} address 02:00:00:00:00:77",
    "the pair has another mark": "ip link set {tap} alias nothing",
    "neighbours are not asked for": "ip link set {tap} arp off",
    "there is another way": "ip route add 203.0.113.9 dev {tap}",
}
QUEUES = {
    "the way out has no bound": ("inside", "tc qdisc del dev out root"),
    "the way in has no bound": ("host", "tc qdisc del dev {tap} root"),
    "a higher bound": (
        "host",
        "tc qdisc change dev {tap} root tbf rate 1gbit burst 1m latency 50ms",
    ),
    "a hook on the host": ("host", "tc qdisc add dev {tap} clsact"),
    "a hook inside": ("inside", "tc qdisc add dev {tap} clsact"),
}
BOTH = [("inside", c) for c in INSIDE.values()]
BOTH += [("host", c) for c in OUTSIDE.values()]


def change(guarded: Guarded, where: str, words: str, other: str = "") -> None:
    command = words.format(tap=guarded.tap, other=other).split()
    if where == "inside":
        guarded.inside(*command)
    else:
        run(*command)


def shape(guarded: Guarded) -> list[str]:
    return [re.sub(r" qdisc \w+", "", line) for line in guarded.shape()]


@pytest.mark.parametrize(("where", "words"), BOTH)
async def test_links_that_are_not_as_they_were_made_are_had_again(
    walled: Guarded, net: Net, where: str, words: str
) -> None:
    other = net.space("other")
    before = shape(walled)
    change(walled, where, words, other)
    await soon(lambda: walled.news, "nobody noticed")
    await soon(lambda: shape(walled) == before, "it is not as it was", 5)
    assert [news.restored for news in walled.news] == [True], walled.news
    assert not walled.guard.why_broken(walled.tap)
    assert "other" not in run("ip", "link").stdout


@pytest.mark.parametrize(("where", "words"), QUEUES.values(), ids=QUEUES)
async def test_bounds_of_a_machines_network_are_had_again(
    walled: Guarded, where: str, words: str
) -> None:
    await walled.guard.leave(walled.tap)
    walled.plan = walled.plan.model_copy(update={"mbit_s": 10})
    await walled.host.limit_rate(walled.plan)
    await walled.guard.keep(walled.plan, MARK)
    look = "tc", "qdisc", "show"

    def queues() -> str:
        return re.sub(r" refcnt \d+", "", walled.inside(*look) + run(*look).stdout)

    before = queues()
    assert before.count("tbf") == 2
    change(walled, where, words)
    await soon(lambda: walled.news, "nobody noticed")
    await soon(lambda: queues() == before, "it is not as it was")
    assert [news.restored for news in walled.news] == [True], walled.news
