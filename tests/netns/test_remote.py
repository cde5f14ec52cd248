"""A gateway's host and a machines' host, as two network namespaces: a link with a delay that goes down and comes back in the
middle of everything, without a word to either side.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.authority import Authority
from tests.fakes.composed import until
from tests.fakes.service import sandbox
from tests.netns.conftest import Net, run
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.service.tls.keys import Side

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = str(Path(sys.executable).parent / "vmdriver")
HOST, PORT = "192.0.2.2", 7443
DELAY = "netem delay 50ms".split()


SWALLOWING = """\
table inet swallowing {
chain arriving {
type filter hook input priority 0; policy drop;
}
}
"""


class Hosts:
    """Both, and their programs. 50 ms each way where the kernel has netem; tests/scenario/test_remote.py has them
    everywhere.
    """

    def __init__(self, net: Net, folder: Path) -> None:
        self.gateway, self.machines = net.space("gw"), net.space("vm")
        run(
            *("ip", "-n", self.gateway, "link", "add", "wire", "type", "veth"),
            *("peer", "name", "wire", "netns", self.machines),
        )
        for space, address in (
            (self.gateway, "192.0.2.1/24"),
            (self.machines, f"{HOST}/24"),
        ):
            run("ip", "-n", space, "addr", "add", address, "dev", "wire")
            run("ip", "-n", space, "link", "set", "wire", "up")
        for space in (self.gateway, self.machines):
            add = ("tc", "-n", space, "qdisc", "add", "dev", "wire", "root", *DELAY)
            run(*add, check=False)
        self._folder = folder
        self._programs: list[subprocess.Popen[bytes]] = []
        authority = Authority(folder / "ca")
        server = authority.issue(f"IP:{HOST}", Side.SERVER)
        client = authority.issue("gateway.test", Side.CLIENT)
        self.socket = folder / "c" / "c.sock"
        self._start(
            self.machines,
            *(sys.executable, "-m", "tests.fakes.far_driver", folder / "far", HOST),
            *(PORT, server.ca, server.certificate, server.key, server.crl),
            "gateway.test",
        )
        self._start(
            self.gateway,
            *(PROGRAM, "compose", "--base", f"tls:{HOST}:{PORT}"),
            *("--bind-socket", self.socket, "--state-dir", folder / "s"),
            *("--tls-ca", client.ca, "--tls-certificate", client.certificate),
            *("--tls-key", client.key, "--tls-crl", client.crl),
        )

    def _start(self, space: str, *command: object) -> None:
        inside = ["ip", "netns", "exec", space, *(str(word) for word in command)]
        log = (self._folder / f"{space}.log").open("wb")
        with log:
            self._programs.append(
                subprocess.Popen(inside, cwd=ROOT, stdout=log, stderr=log)
            )

    def wire(self, state: str) -> None:
        run("ip", "-n", self.machines, "link", "set", "wire", state)

    def swallow(self, *, everything: bool) -> None:
        """What arrives vanishes; both links stay up, and nobody is told."""
        rules = SWALLOWING if everything else "delete table inet swallowing"
        for space in (self.gateway, self.machines):
            run("ip", "netns", "exec", space, "nft", "-f", "-", input=rules)

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in self._folder.glob("*.log"))

    def close(self) -> None:
        for program in self._programs:
            program.terminate()
        for program in self._programs:
            program.wait(20)


@pytest.fixture
def hosts(net: Net, tmp_path: Path) -> Iterator[Hosts]:
    hosts = Hosts(net, tmp_path)
    yield hosts
    hosts.close()


@contextlib.asynccontextmanager
async def gateway(hosts: Hosts) -> AsyncIterator[Any]:
    await until(lambda: hosts.socket.exists() or "Error" in hosts.logs(), 30)
    target = f"unix:{hosts.socket}"
    async with grpc.aio.insecure_channel(target) as channel:
        yield pb_grpc.ComputeDriverStub(channel)


async def listed(stub: Any) -> set[str]:
    answer = await stub.ListSandboxes(pb.ListSandboxesRequest(), timeout=60)
    return {sandbox.id for sandbox in answer.sandboxes}


async def life(stub: Any, name: str) -> None:
    """Create, stop, start, delete of one sandbox; each call until it is taken, as a gateway does."""
    ids = {"sandbox_id": name, "sandbox_name": f"name-{name}"}
    made = pb.CreateSandboxRequest(sandbox=sandbox(name))
    await tried(lambda: stub.CreateSandbox(made, timeout=60))
    await tried(lambda: stub.StopSandbox(pb.StopSandboxRequest(**ids), timeout=60))
    await tried(lambda: stub.StartSandbox(pb.StartSandboxRequest(**ids), timeout=60))
    await tried(lambda: stub.DeleteSandbox(pb.DeleteSandboxRequest(**ids), timeout=60))


async def tried(call: Any) -> None:
    """No other refusal than that the driver is away."""
    for last in (False, False, True):
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or last:
                raise
        else:
            return


async def watch(stub: Any, found: list[Any]) -> None:
    async for event in stub.WatchSandboxes(pb.WatchSandboxesRequest()):
        found.append(event)


async def test_a_link_that_goes_down_and_up_loses_and_doubles_nothing(
    hosts: Hosts,
) -> None:
    events: list[Any] = []
    async with gateway(hosts) as stub:
        assert await listed(stub) == set(), hosts.logs()
        stays = pb.CreateSandboxRequest(sandbox=sandbox("stays"))
        await stub.CreateSandbox(stays, timeout=60)
        watching = asyncio.create_task(watch(stub, events))
        lives = [asyncio.create_task(life(stub, f"s{n}")) for n in range(12)]
        for cut in range(6):
            await asyncio.sleep(0.15 + 0.07 * cut)
            hosts.wire("down")
            await asyncio.sleep(0.3)
            hosts.wire("up")
        await asyncio.gather(*lives)
        assert await listed(stub) == {"stays"}, hosts.logs()
        told = {event.deleted.sandbox_id for event in events}
        gone = {f"s{n}" for n in range(12)}
        await until(lambda: gone <= {event.deleted.sandbox_id for event in events})
        assert "stays" not in told
        watching.cancel()
        await asyncio.wait({watching})


async def test_a_host_that_vanishes_without_a_word_is_noticed_and_found_again(
    hosts: Hosts,
) -> None:
    """What keepalive is for: nothing is ever sent back, not even that nobody is there."""
    async with gateway(hosts) as stub:
        assert await listed(stub) == set(), hosts.logs()
        hosts.swallow(everything=True)
        made = pb.CreateSandboxRequest(sandbox=sandbox())
        asked = asyncio.ensure_future(stub.CreateSandbox(made, timeout=90))
        await until(lambda: "has ended" in hosts.logs(), 40)
        assert not asked.done()
        hosts.swallow(everything=False)
        await asked
        assert await listed(stub) == {"s1"}
