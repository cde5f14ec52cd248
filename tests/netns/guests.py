"""What stands for a guest in these tests: a network namespace with its MAC and address, connected as the machine would be."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import struct
import threading
from dataclasses import dataclass
from typing import Any

from tests.netns.conftest import Net, run
from tests.netns.test_host_network import network_plan
from vmdriver.host.confined import netns
from vmdriver.model.ids import host_mac
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.host_network import HostNetwork

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 2, 0x1000


def open_tap(namespace: str, name: str) -> int:
    """As QEMU has it: what is read from it was sent by the host, and the other way round."""
    with netns.entered(namespace):
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI)
        fcntl.ioctl(tap, TUNSETIFF, request)
    return tap


class Wire:
    """Carries frames between two taps."""

    def __init__(self, one: int, other: int) -> None:
        self._ends = {one: other, other: one}
        self._stop = os.pipe()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def _carry(self) -> None:
        while True:
            ready, _, _ = select.select([*self._ends, self._stop[0]], [], [])
            if self._stop[0] in ready:
                return
            for end in ready:
                try:
                    os.write(self._ends[end], os.read(end, 65536))
                except OSError:
                    continue  # it is down, or was taken away

    def close(self) -> None:
        os.write(self._stop[1], b"x")
        self._thread.join()
        for end in (*self._ends, *self._stop):
            os.close(end)


def in_the_host(net: Net, name: str, plan: NetworkPlan) -> str:
    """One whose tap would be in the host's own namespace: there is a veth of its name."""
    space = net.space(name)
    lease = plan.lease
    net.link(name, lease.tap, space, f"{lease.host_ip}/30", f"{lease.guest_ip}/30")
    run("ip", "-n", space, "link", "set", "eth0", "down")
    run("ip", "-n", space, "link", "set", "eth0", "address", lease.mac)
    run("ip", "-n", space, "link", "set", "eth0", "up")
    run("ip", "-n", space, "route", "replace", "default", "via", lease.host_ip)
    for setting in ("route_localnet=1", "rp_filter=1"):
        run("sysctl", "-qw", f"net.ipv4.conf.{lease.tap}.{setting}")
    return space


def in_its_namespace(net: Net, name: str, plan: NetworkPlan) -> str:
    """One at the tap of a namespace that is there already."""
    space, lease = net.space(name), plan.lease
    inner = open_tap(space, "eth0")
    for command in (
        ("link", "set", "eth0", "address", lease.mac, "up"),
        ("addr", "add", f"{lease.guest_ip}/30", "dev", "eth0"),
        ("route", "add", "default", "via", lease.host_ip),
    ):
        run("ip", "-n", space, *command)
    if plan.ipv6 is not None:
        own, way, mac = plan.ipv6.guest_ip, plan.ipv6.host_ip, host_mac(lease.mac)
        for words in (
            f"addr add {own}/128 dev eth0 nodad",
            f"neigh replace {way} lladdr {mac} dev eth0",
            f"route add default via {way} dev eth0 onlink",
        ):
            run("ip", "-n", space, "-6", *words.split())
    net.wires.append(Wire(open_tap(lease.tap, lease.tap), inner))
    return space


@dataclass
class Around:
    """What is around a guest, and how its machine is connected: in a namespace of its own or in the host's."""

    net: Net
    host: HostNetwork
    walled: bool

    def plan(self, *arguments: object, **changes: object) -> NetworkPlan:
        plan = network_plan(*arguments, **changes)
        if not self.walled:
            return plan
        return plan.model_copy(update={"namespace": plan.lease.tap})

    def load(self, plan: NetworkPlan, owner: str = "vmdriver/test/s1") -> None:
        asyncio.run(self.host.load_rules(plan, owner))

    def guest(
        self,
        name: str,
        plan: NetworkPlan,
        owner: str = "vmdriver/test/s1",
        *,
        way_out: bool = True,
    ) -> str:
        """One by that name. With a namespace of its own, its way out is closed until its rules are
        loaded, which some tests never do: it is opened, unless `way_out` is false.
        """
        if not self.walled:
            return in_the_host(self.net, name, plan)
        asyncio.run(self.host.make_tap(plan, owner))
        if way_out:
            asyncio.run(self.host.connect(plan))
        self.net.spaces.append(plan.lease.tap)
        return in_its_namespace(self.net, name, plan)

    def inside(self, plan: NetworkPlan) -> list[str]:
        """What runs a program where the tap is."""
        return ["ip", "netns", "exec", plan.lease.tap] if self.walled else []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)
