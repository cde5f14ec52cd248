"""Names for guests from a resolver that listens on the host's loopback alone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.netns.conftest import Net, run
from tests.netns.guests import in_its_namespace
from tests.netns.test_host_network import ALIAS, POOL, network_plan
from vmdriver.config import config_of
from vmdriver.config.views import settings_from
from vmdriver.host import resolv_conf
from vmdriver.host.resolv_conf import Followed, parse
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.guard.guard import NetworkGuard
from vmdriver.network.host_network import HostNetwork
from vmdriver.network.names.asking import Asking
from vmdriver.network.names.named import NamedNetworks
from vmdriver.network.names.service import NameService

MARK = "vmdriver/test/s1"
RESOLVER = """
import socket, struct, sys, threading, time
address, answer = sys.argv[1:3]
def reply(message, stream):
    end = 12 + message[12:].index(0) + 5
    name, more = message[12:end], struct.unpack_from(">H", message, 10)[0]
    size = struct.unpack_from(">BHH", message, end)[2] if more else 512
    print(message.hex(), flush=True)
    if b"silent" in name:
        return None
    record = b"\\xc0\\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(answer)
    if b"large" in name:
        record = b"\\xc0\\x0c" + struct.pack(">HHIH", 16, 1, 60, 3000) + b"x" * 3000
    cut = not stream and end + len(record) > size
    head = message[:2] + struct.pack(">5H", 0x8380 if cut else 0x8180, 1, 0 if cut else 1, 0, 0)
    return head + name + (b"" if cut else record)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind((address, 53))
t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); t.bind((address, 53)); t.listen()
def streams():
    while True:
        c, peer = t.accept()
        got = b""
        while len(got) < 2 or len(got) < 2 + struct.unpack(">H", got[:2])[0]:
            part = c.recv(4096)
            if not part: break
            got += part
        else:
            out = reply(got[2:], True)
            if out: c.sendall(struct.pack(">H", len(out)) + out)
        c.close()
threading.Thread(target=streams, daemon=True).start()
print("up", flush=True)
while True:
    message, peer = u.recvfrom(65535)
    out = reply(message, False)
    if out: u.sendto(out, peer)
"""
"""A resolver that has one address for every name, but for those that are large, or that it is silent about."""
HOLDER = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("0.0.0.0", 53))
print("up", flush=True); time.sleep(99)
"""
ASK = """
import json, socket, struct, sys, time
server, name, kind, how = sys.argv[1:5]
tries, wait = int(sys.argv[5]), float(sys.argv[6])
asked = b"".join(bytes([len(p)]) + p.encode() for p in name.split(".")) + b"\\0" + struct.pack(">HH", int(kind), 1)
edns = how == "edns"
message = struct.pack(">6H", 4711, 0x0100, 1, 0, 0, int(edns)) + asked
if edns: message += struct.pack(">BHHBBHH", 0, 41, 4000, 0, 0, 0, 0)
begun = time.monotonic()
def ask():
    if how == "tcp":
        c = socket.create_connection((server, 53), wait); c.settimeout(wait)
        c.sendall(struct.pack(">H", len(message)) + message)
        f = c.makefile("rb"); head = f.read(2)
        if len(head) < 2: raise OSError("closed")
        return f.read(struct.unpack(">H", head)[0])
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(wait); s.connect((server, 53))
    s.send(message); return s.recv(65535)
found, errors = None, []
for _ in range(tries):
    try: found = ask(); break
    except OSError as e: errors.append(type(e).__name__)
said = {"errors": errors, "seconds": time.monotonic() - begun}
if found is not None:
    number, flags = struct.unpack_from(">2H", found)
    said |= {"number": number, "code": flags & 15, "cut": bool(flags & 0x200), "bytes": len(found),
             "address": socket.inet_ntoa(found[-4:]) if len(found) > 20 else ""}
print(json.dumps(said))
"""


@dataclass
class Names:
    """A guest, its host's resolv.conf, and the driver's part."""

    net: Net
    host: HostNetwork
    conf: Path
    plan: NetworkPlan
    threads: Threads
    guest: str = ""
    drivers: list[NamedNetworks] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    """What has become of questions."""

    def driver(self) -> NamedNetworks:
        """One that begins; `kept` keeps the machine's network in it."""
        guard = NetworkGuard(self.host, self.threads)
        conf = Followed(self.conf)
        names = NameService(Asking(lambda: conf.now().servers))
        names.load.count = lambda end: self.ends.update([end])
        named = NamedNetworks(guard=guard, names=names)
        named.open()
        self.drivers.append(named)
        return named

    async def gone(self) -> None:
        """The driver ends."""
        await self.drivers.pop().close()

    def resolver(
        self, address: str = "127.0.0.1", answer: str = "192.0.2.80"
    ) -> subprocess.Popen[str]:
        server = subprocess.Popen(
            [sys.executable, "-c", RESOLVER, address, answer],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        self.net.servers.append(server)
        return server

    async def ask(
        self,
        name: str = "www.example.org",
        *,
        how: str = "udp",
        kind: int = 1,
        server: str = ALIAS,
        tries: int = 1,
        wait: float = 8.0,
    ) -> dict[str, object]:
        command = ("ip", "netns", "exec", self.guest, sys.executable, "-c", ASK)
        more = (server, name, str(kind), how, str(tries), str(wait))
        done = await asyncio.to_thread(run, *command, *more)
        return dict(json.loads(done.stdout))


@pytest.fixture
async def names(net: Net, tmp_path: Path) -> AsyncIterator[Names]:
    threads = Threads("test", 2)
    host = HostNetwork(
        "test", Ownership(os.getuid(), os.getgid()), threads, POOL, tmp_path / "notes"
    )
    plan = network_plan(dns=(ALIAS,), max_connections=512)
    plan = plan.model_copy(update={"namespace": plan.lease.tap})
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.1\n")
    found = Names(net, host, conf, plan, threads)
    await host.make_tap(plan, MARK)
    net.spaces.append(plan.lease.tap)
    found.guest = in_its_namespace(net, "guest", plan)
    yield found
    while found.drivers:
        await found.gone()
    threads.close()


async def test_a_guest_resolves_a_name_through_a_resolver_on_the_loopback_alone(
    names: Names,
) -> None:
    server = names.resolver()
    guards = names.driver()
    await guards.keep(names.plan, MARK)
    found = await names.ask()
    assert (found["number"], found["code"], found["address"]) == (4711, 0, "192.0.2.80")
    assert server.stdout is not None
    seen = bytes.fromhex(server.stdout.readline())
    assert seen[12:].startswith(b"\x03www\x07example\x03org\0")
    assert (await names.ask(how="tcp"))["address"] == "192.0.2.80"


async def test_a_large_answer_comes_whole_as_large_as_the_guest_asks_or_as_a_stream(
    names: Names,
) -> None:
    names.resolver()
    await names.driver().keep(names.plan, MARK)
    cut = await names.ask("large.example", kind=16)
    assert (cut["cut"], cut["bytes"]) == (True, 12 + 15 + 4)
    for how in ("edns", "tcp"):
        whole = await names.ask("large.example", kind=16, how=how)
        assert not whole["cut"]
        assert int(str(whole["bytes"])) > 3000, "also in more than one packet"


async def test_what_is_no_plain_question_never_comes_to_the_hosts_resolver(
    names: Names,
) -> None:
    server = names.resolver()
    await names.driver().keep(names.plan, MARK)
    assert (await names.ask("zone.example", kind=252, how="tcp"))["errors"]
    assert (await names.ask("zone.example", kind=252, wait=0.5))["errors"] == [
        "TimeoutError"
    ]
    assert (await names.ask("after.example"))["address"] == "192.0.2.80"
    assert server.stdout is not None
    assert b"after" in bytes.fromhex(server.stdout.readline()), "the first that came"
    assert names.ends["refused"] == 2


async def test_a_resolver_at_an_address_of_the_hosts_own_is_asked_by_the_driver(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guests do not reach the host there."""
    text = "nameserver 198.51.100.53\n"
    monkeypatch.setattr(resolv_conf, "read", lambda *_: parse(text))
    assert settings_from(config_of({})).dns == ("198.51.100.53",)
    run("ip", "addr", "add", "198.51.100.53/32", "dev", "lo")
    try:
        assert settings_from(config_of({})).dns == (ALIAS,)
        names.resolver("198.51.100.53")
        names.conf.write_text(text)
        await names.driver().keep(names.plan, MARK)
        assert (await names.ask())["address"] == "192.0.2.80"
    finally:
        run("ip", "addr", "del", "198.51.100.53/32", "dev", "lo")


async def test_another_resolv_conf_counts_from_the_next_question_on(
    names: Names,
) -> None:
    names.resolver(answer="192.0.2.1")
    names.resolver("127.0.0.54", answer="192.0.2.2")
    await names.driver().keep(names.plan, MARK)
    assert (await names.ask())["address"] == "192.0.2.1"
    names.conf.write_text("nameserver 127.0.0.54\n")
    assert (await names.ask())["address"] == "192.0.2.2"


async def test_a_server_that_is_away_or_silent_is_passed_over_and_without_any_it_is_said(
    names: Names,
) -> None:
    names.resolver("127.0.0.54")
    await names.driver().keep(names.plan, MARK)
    names.conf.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.54\n")
    for how in ("udp", "tcp"):
        assert (await names.ask(how=how))["address"] == "192.0.2.80"
        assert (await names.ask("silent.example", how=how))["code"] == 2
    names.conf.write_text("nameserver 127.0.0.1\n")
    away = await names.ask()
    assert away["code"] == 2
    assert float(str(away["seconds"])) < 1.5, "nobody waits for what is refused"


async def test_machines_outlive_the_driver_and_the_next_one_answers_what_was_asked_meanwhile(
    names: Names,
) -> None:
    names.resolver()
    await names.driver().keep(names.plan, MARK)
    assert (await names.ask())["address"] == "192.0.2.80"
    await names.gone()
    waits = asyncio.create_task(names.ask(tries=4, wait=1.0))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waits), 1.5)
    await names.driver().keep(names.plan, MARK, mend=True)
    found = await waits
    assert found["address"] == "192.0.2.80"
    assert set(found["errors"]) == {"TimeoutError"}, "no server said that it is away"  # type: ignore[call-overload]


async def test_nobody_is_answered_that_may_not_ask_or_asks_at_another_address(
    names: Names,
) -> None:
    names.resolver()
    names.resolver(names.plan.lease.uplink_ip)
    guards = names.driver()
    await guards.keep(names.plan, MARK)
    for elsewhere in (names.plan.lease.host_ip, names.plan.lease.uplink_ip):
        for how in ("udp", "tcp"):
            refused = await names.ask(server=elsewhere, how=how, wait=1.0)
            assert "address" not in refused
            assert refused["errors"], elsewhere
    silent = names.plan.model_copy(update={"dns": ()})
    await guards.keep(silent, MARK)
    refused = await names.ask(wait=1.0)
    assert refused["errors"]
    assert refused["errors"] != ["TimeoutError"], "it is told at once"
    assert (
        "0.0.0.0:53"
        not in run("ip", "netns", "exec", names.plan.lease.tap, "ss", "-Hlntu").stdout
    )
    assert (
        ":53"
        not in run("ip", "netns", "exec", names.plan.lease.tap, "ss", "-Hlntu").stdout
    )


async def test_a_guest_that_asks_without_end_holds_up_no_other(
    names: Names, net: Net
) -> None:
    """Its questions are bounded where they are open, and where they come in."""
    names.resolver()
    guards = names.driver()
    await guards.keep(names.plan, MARK)
    flood = """
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((sys.argv[1], 53))
asked = b"\\x06silent\\x07example\\0" + struct.pack(">HH", 1, 1)
for n in range(3000):
    s.send(struct.pack(">6H", n, 0x0100, 1, 0, 0, 0) + asked)
"""
    command = ("ip", "netns", "exec", names.guest, sys.executable, "-c", flood, ALIAS)
    await asyncio.to_thread(run, *command)
    load = names.drivers[0].names.load
    assert load.open <= 64
    async with asyncio.timeout(10):  # what has come is read when the loop comes to it
        while not names.ends["dropped"]:
            await asyncio.sleep(0.01)
    came = load.open + names.ends.total()
    assert came < 1500, "the kernel has dropped the rest"
    await names.gone()
    assert load.open == 0


async def test_nothing_of_it_is_left_when_the_machine_goes(names: Names) -> None:
    names.resolver()
    guards = names.driver()
    await guards.keep(names.plan, MARK)
    tap = names.plan.lease.tap
    asked = asyncio.create_task(names.ask("silent.example", wait=3.0))
    while not names.drivers[0].names.load.open:
        await asyncio.sleep(0.01)
    await guards.leave(tap)
    assert names.drivers[0].names.load.open == 0
    assert ":53" not in run("ip", "netns", "exec", tap, "ss", "-Hlntu").stdout
    await asked


async def test_a_namespace_that_is_another_is_served_anew(names: Names) -> None:
    names.resolver()
    guards = names.driver()
    await guards.keep(names.plan, MARK)
    tap = names.plan.lease.tap
    await names.host.make_tap(
        names.plan, MARK
    )  # as a start does with what was left over
    await names.drivers[0].names.serve(names.plan)

    def answers() -> bool:
        return ":53" in run("ip", "netns", "exec", tap, "ss", "-Hlntu").stdout

    # The guard restores what it takes for a loss, and is in between at times.
    async with asyncio.timeout(10):
        while not answers():
            await asyncio.sleep(0.05)


async def test_a_port_that_is_taken_is_tried_again(names: Names) -> None:
    names.resolver()
    tap = names.plan.lease.tap
    holder = subprocess.Popen(
        ["ip", "netns", "exec", tap, sys.executable, "-c", HOLDER],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "up\n"
    await names.driver().keep(names.plan, MARK)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    assert (await names.ask(tries=8, wait=1.0))["address"] == "192.0.2.80"


HALF_CLOSED = """
import socket, struct, sys
c = socket.create_connection((sys.argv[1], 53))
asked = struct.pack(">6H", 9, 0x100, 1, 0, 0, 0) + b"\\x05large\\0" + struct.pack(">HH", 16, 1)
c.sendall((struct.pack(">H", len(asked)) + asked) * 2); c.shutdown(socket.SHUT_WR)
got = b""
while part := c.recv(65536): got += part
print(len(got))
"""
MANY_STREAMS = """
import socket, sys
closed = 0
streams = [socket.create_connection((sys.argv[1], 53)) for _ in range(12)]
for one in streams[8:]:
    one.settimeout(5)
    try: closed += one.recv(1) == b""
    except ConnectionResetError: closed += 1
print(closed)
"""


async def test_streams_are_answered_to_their_end_and_bounded(names: Names) -> None:
    names.resolver()
    await names.driver().keep(names.plan, MARK)
    command = ("ip", "netns", "exec", names.guest, sys.executable, "-c")
    both = await asyncio.to_thread(run, *command, HALF_CLOSED, ALIAS)
    assert int(both.stdout) > 6000, (
        "two answers, to one that has said all it has to say"
    )
    closed = await asyncio.to_thread(run, *command, MANY_STREAMS, ALIAS)
    assert closed.stdout == "4\n"
    async with asyncio.timeout(5):
        while names.drivers[0].names.load.streams:
            await asyncio.sleep(0.01)


DRIBBLE = """
import socket, sys
c = socket.create_connection((sys.argv[1], 53)); c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
c.settimeout(5); c.sendall(b"\\xff\\xff")
print(c.recv(1) == b"")
def anew():
    c = socket.create_connection((sys.argv[1], 53), 5); c.settimeout(0.01)
    c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1); c.send(b"\\x0f\\xff")
    return c
streams, sent = [anew() for _ in range(8)], 0
for n in range(20000):
    try: sent += streams[n % 8].send(b"x")
    except OSError: pass
print(sent)
"""


def segments(tap: str) -> int:
    """That have come to that namespace's TCP, behind its rules."""
    shown = run("ip", "netns", "exec", tap, "cat", "/proc/net/snmp").stdout
    named, said = (one.split() for one in shown.splitlines() if one.startswith("Tcp:"))
    return int(said[named.index("InSegs")])


async def test_a_guest_that_sends_byte_by_byte_does_not_keep_the_driver_busy(
    names: Names,
) -> None:
    names.resolver()
    await names.driver().keep(names.plan, MARK)
    command = ("ip", "netns", "exec", names.guest, sys.executable, "-c", DRIBBLE, ALIAS)
    before, begun = segments(names.plan.lease.tap), time.monotonic()
    closed, sent = (await asyncio.to_thread(run, *command)).stdout.split()
    came, passed = segments(names.plan.lease.tap) - before, time.monotonic() - begun
    assert closed == "True", "what is to be longer than a question is not waited for"
    assert came < int(sent)
    assert came <= 1024 + 512 * (passed + 1)


async def test_what_is_cut_off_while_it_opens_leaves_nothing_open(names: Names) -> None:
    service, tap = names.driver().names, names.plan.lease.tap
    for delay_s in (0, 0, 0, 0.0005, 0.001, 0.002):
        serving = asyncio.create_task(service.serve(names.plan))
        await asyncio.sleep(delay_s)
        serving.cancel()
        await asyncio.wait({serving, asyncio.create_task(service.leave(tap))})
        await service.leave(tap)
        shown = run("ip", "netns", "exec", tap, "ss", "-Hlntu").stdout
        assert ":53" not in shown, delay_s
