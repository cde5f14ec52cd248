"""A tap that QEMU opens outside of its machine's network namespace, and that is moved in then: for
a libvirt daemon, which begins QEMU where it is itself. Until it is in, it is down and has no
address, and the machine is paused. What is open stays attached to it, wherever it is.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vmdriver.errors import NetworkError
from vmdriver.host.confined import netns
from vmdriver.lifecycle.ports.network_guard import NetworkGuard
from vmdriver.model.plan import NetworkPlan
from vmdriver.network import namespace
from vmdriver.network.netlink import (
    attribute,
    netlink,
    netlink_in,
    translated,
)


@dataclass(frozen=True)
class Entrance:
    """The guard looks away meanwhile."""

    guard: NetworkGuard

    @asynccontextmanager
    async def around(self, plan: NetworkPlan, mark: str) -> AsyncIterator[None]:
        """Inside, the plan's QEMU is begun, and its machine is left paused: there is a tap for it
        to open. Afterwards that is in its namespace, behind its rules. Nothing for a plan whose
        tap is there from the beginning. NetworkError.
        """
        if not plan.moved:
            yield
            return
        await self.guard.leave(plan.lease.tap)
        with translated(f"tap {plan.opened_tap}"):
            await _make_outside(plan, mark)
        yield
        with translated(f"tap {plan.opened_tap}"):
            await _move_in(plan, mark)
        await self.guard.keep(plan, mark)


async def _make_outside(plan: NetworkPlan, mark: str) -> None:
    """Also where one of an earlier try is in or outside."""
    async with netlink_in(plan.lease.tap) as inside:
        for index in await inside.link_lookup(ifname=plan.lease.tap):
            await inside.link("del", index=index)
    name = plan.opened_tap
    async with netlink() as host:
        for index in await host.link_lookup(ifname=name):
            (link,) = await host.link("get", index=index)
            if attribute(link, "IFLA_IFALIAS") not in {mark, None}:
                raise NetworkError(f"an interface {name} exists and is not ours")
            await host.link("del", index=index)
        await host.link("add", ifname=name, kind="tuntap", mode="tap")
        (index,) = await host.link_lookup(ifname=name)
        await host.link("set", index=index, ifalias=mark)


async def _move_in(plan: NetworkPlan, mark: str) -> None:
    within = plan.lease.tap
    there = os.open(netns.path(within), os.O_RDONLY | os.O_CLOEXEC)
    try:
        async with netlink() as host:
            (index,) = await host.link_lookup(ifname=plan.opened_tap)
            await host.link("set", index=index, net_ns_fd=there, ifname=within)
    finally:
        os.close(there)
    # It has the values of what is made in there now, which is the pair's end.
    await namespace.settle(plan)
    await namespace.furnish(plan, mark)
