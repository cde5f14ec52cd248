"""How fast packets leave by an interface, measured."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time

from pyroute2 import AsyncIPRoute

from tests.netns.conftest import Net, run
from tests.netns.test_host_network import POOL, network_plan
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.shaping import shape

RECEIVE = """
import socket, sys
c, n = socket.create_connection(("10.9.0.1", int(sys.argv[1]))), 0
while d := c.recv(65536):
    n += len(d)
print(n)
"""
MIB = 2**20


def seconds_for(net: Net, space: str, size: int) -> float:
    """How long that many bytes take from the host into the namespace."""
    server = socket.create_server(("10.9.0.1", 0))
    command = ["ip", "netns", "exec", space, sys.executable, "-c", RECEIVE]
    with (
        server,
        subprocess.Popen(
            [*command, str(server.getsockname()[1])],
            stdout=subprocess.PIPE,
            text=True,
        ) as client,
    ):
        connection, _ = server.accept()
        begun = time.monotonic()
        with connection:
            connection.sendall(bytes(size))
        assert client.communicate()[0].strip() == str(size)
        return time.monotonic() - begun


async def test_an_interface_is_as_fast_as_it_may_be_and_no_faster(net: Net) -> None:
    space = net.space("guest")
    net.link("guest", "shaped", space, "10.9.0.1/30", "10.9.0.2/30")
    async with AsyncIPRoute() as netlink:
        index = (await netlink.link_lookup(ifname="shaped"))[0]
        for _ in range(2):
            await shape(netlink, index, 8)
        assert seconds_for(net, space, 2 * MIB) > 1.5, "2 MiB at 8 Mbit/s take 2 s"
        await shape(netlink, index, 800)
        assert "rate 800Mbit" in run("tc", "qdisc", "show", "dev", "shaped").stdout
        for _ in range(2):
            await shape(netlink, index, None)
        assert "tbf" not in run("tc", "qdisc", "show", "dev", "shaped").stdout
        assert seconds_for(net, space, 2 * MIB) < 1.5


async def test_somebody_elses_queue_is_left_alone(net: Net) -> None:
    space = net.space("guest")
    net.link("guest", "shaped", space, "10.9.0.1/30", "10.9.0.2/30")
    run("tc", "qdisc", "add", "dev", "shaped", "root", "pfifo")
    async with AsyncIPRoute() as netlink:
        index = (await netlink.link_lookup(ifname="shaped"))[0]
        await shape(netlink, index, None)
    assert "pfifo" in run("tc", "qdisc", "show", "dev", "shaped").stdout


async def test_a_machines_network_is_bounded_each_way_from_its_making_and_later(
    net: Net,
) -> None:
    """What it sends inside its namespace, what it is sent on the host: out of its reach, both."""
    files = Threads("test", 2)
    host = HostNetwork("test", Ownership(0, 0), files, POOL)
    plan = network_plan(mbit_s=8)
    plan = plan.model_copy(update={"namespace": plan.lease.tap})
    name = plan.lease.tap

    def bounds() -> list[str]:
        inside = run("tc", "-n", name, "qdisc", "show", "dev", "out").stdout
        outside = run("tc", "qdisc", "show", "dev", name).stdout
        found = (re.search(r"tbf.* rate (\S+)", text) for text in (inside, outside))
        return [match[1] if match else "none" for match in found]

    await host.make_tap(plan, "vmdriver/test/s1")
    await host.connect(plan)  # as its rules do
    try:
        assert bounds() == ["8Mbit", "8Mbit"]
        for mbit_s, shown in ((80, "80Mbit"), (None, "none"), (3, "3Mbit")):
            await host.limit_rate(plan.model_copy(update={"mbit_s": mbit_s}))
            assert bounds() == [shown, shown]
    finally:
        await host.remove_tap(name, "vmdriver/test/s1")
        files.close()
