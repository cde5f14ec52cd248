"""How fast packets leave by an interface, measured."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from pyroute2 import AsyncIPRoute

from tests.netns.conftest import Net, run
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
