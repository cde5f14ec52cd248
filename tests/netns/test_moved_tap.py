"""A tap that somebody opens outside, as a libvirt daemon does, and that is moved in then."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import pytest

from tests.netns.conftest import Net, run
from tests.netns.test_guard import MARK, Guarded, soon
from tests.netns.test_host_network import POOL, network_plan
from vmdriver.errors import HypervisorError
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.network.guard.guard import NetworkGuard
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.moved_tap import Entrance


@pytest.fixture
async def outside(net: Net) -> AsyncIterator[Guarded]:
    """A machine's network before its QEMU is begun."""
    files = Threads("test", 2)
    host = HostNetwork("test", Ownership(os.getuid(), os.getgid()), files, POOL)
    guard = NetworkGuard(host, files)
    guard.open()
    plan = network_plan()
    walled = {"namespace": plan.lease.tap, "moved": True, "max_connections": 64}
    plan = plan.model_copy(update=walled)
    await host.make_tap(plan, MARK)
    await guard.keep(plan, MARK)
    yield Guarded(guard, plan, host)
    await guard.close()
    await host.remove_rules(plan.lease.tap)
    await host.remove_tap(plan.lease.tap, MARK)
    assert "vm" not in run("ip", "link").stdout
    assert await host.marked() == []
    files.close()


@contextmanager
def opened(name: str) -> Iterator[int]:
    """As libvirt opens it for QEMU."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1002))
        yield device
    finally:
        os.close(device)


def entrance(machine: Guarded) -> Entrance:
    return Entrance(machine.guard)


async def test_what_was_opened_outside_is_inside_afterwards_and_works(
    outside: Guarded,
) -> None:
    plan, lease = outside.plan, outside.plan.lease
    async with entrance(outside).around(plan, MARK):
        tun = opened(plan.opened_tap)
        device = tun.__enter__()
        there = run("ip", "addr", "show", plan.opened_tap).stdout
        assert "state DOWN" in there
        assert "inet " not in there
    try:
        assert plan.opened_tap not in run("ip", "link").stdout
        assert "LOWER_UP" in outside.inside("ip", "link", "show", lease.tap)
        assert "chain frames" in outside.inside("nft", "list", "ruleset")
        who = bytes.fromhex(lease.mac.replace(":", ""))
        me, gateway = (
            bytes(map(int, ip.split("."))) for ip in (lease.guest_ip, lease.host_ip)
        )
        asked = b"\xff" * 6 + who + bytes.fromhex("08060001080006040001") + who + me
        os.write(device, asked + bytes(6) + gateway)
        seen = bytearray()

        def answered() -> bool:
            with suppress(BlockingIOError):
                seen.extend(os.read(device, 2048))
            return bytes.fromhex("08060001080006040002") in seen

        await soon(answered, "nobody answers at the other end")
    finally:
        tun.__exit__(None, None, None)


async def test_it_is_kept_behind_its_rules_from_then_on(outside: Guarded) -> None:
    async with entrance(outside).around(outside.plan, MARK):
        pass
    assert outside.news == []
    before = outside.shape()
    outside.inside("nft", "flush", "ruleset")
    await soon(lambda: outside.shape() == before, "it is not restored")


async def test_a_begin_that_fails_can_be_tried_again_and_leaves_nothing(
    outside: Guarded,
) -> None:
    """The first before anything was moved, the second after."""
    for _ in range(2):
        with pytest.raises(HypervisorError):
            async with entrance(outside).around(outside.plan, MARK):
                raise HypervisorError("QEMU has ended")
    for _ in range(2):
        async with entrance(outside).around(outside.plan, MARK):
            pass
    assert outside.inside("ip", "link").count(outside.tap) == 1


async def test_one_that_was_cut_off_in_between_is_found_and_removed(
    outside: Guarded,
) -> None:
    with pytest.raises(HypervisorError):
        async with entrance(outside).around(outside.plan, MARK):
            raise HypervisorError("killed")
    kinds = {(found.kind, found.name) for found in await outside.host.marked()}
    assert ("tap", outside.plan.opened_tap) in kinds
