"""Root in a guest, with raw sockets: what leaves its machine, what answers it, what it can use up, and what a flushed firewall
opens for it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adversary.inside import addresses_of_the_host, two_running
from tests.fakes.waiting import until
from tests.system.machines import Driver

MAGIC = b"frame of an attacker: "
FRAMES = r"""
import json, socket, struct, sys
words = json.loads(sys.argv[1])
MAGIC = b"frame of " + b"an attacker: "  # the text of this program is seen as well
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.bind(("eth0", 0))
own_mac = raw.getsockname()[4]
own = socket.inet_aton(words["own"])
gateway_mac = bytes.fromhex(words["gateway_mac"].replace(":", ""))
other_mac, everybody = bytes.fromhex("0a0000000001"), b"\xff" * 6
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
def ip(source, target, payload, options=b""):
    udp = struct.pack("!HHHH", 4000, 53, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(udp), 7, 0, 64, 17, 0, source, target) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + udp
def arp(operation, mac, address, target):
    return struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, operation, mac, address, everybody, target)
def frame(kind, payload, source=own_mac, target=gateway_mac):
    return target + source + struct.pack("!H", kind) + payload
dns = socket.inet_aton(words["dns"])
foreign = socket.inet_aton(words["foreign"])
plain = ip(own, dns, MAGIC + b"in a tag")
sent = {
    "an unknown ethertype": frame(0x88b5, MAGIC + b"an unknown ethertype"),
    "LLDP": frame(0x88cc, MAGIC + b"LLDP", target=bytes.fromhex("0180c200000e")),
    "spanning tree": bytes.fromhex("0180c2000000") + own_mac + struct.pack("!H", 60) + b"\x42\x42\x03" + MAGIC + b"spanning tree",
    "a VLAN": frame(0x8100, struct.pack("!HH", 5, 0x800) + plain),
    "VLAN 0": frame(0x8100, struct.pack("!HH", 0, 0x800) + plain),
    "a VLAN in a VLAN": frame(0x88a8, struct.pack("!HHHH", 5, 0x8100, 6, 0x800) + plain),
    "IPv6": frame(0x86dd, struct.pack("!IHBB16s16s", 6 << 28, len(MAGIC) + 4, 59, 255, b"\xfe\x80" + b"\0" * 13 + b"\1", b"\xff\2" + b"\0" * 13 + b"\1") + MAGIC + b"IPv6", target=bytes.fromhex("333300000001")),
    "a foreign source": frame(0x800, ip(foreign, dns, MAGIC + b"a foreign source")),
    "no source": frame(0x800, ip(b"\0" * 4, dns, MAGIC + b"no source")),
    "a source of the host's": frame(0x800, ip(socket.inet_aton("127.0.0.1"), dns, MAGIC + b"a source of the host's")),
    "a foreign MAC": frame(0x800, ip(own, dns, MAGIC + b"a foreign MAC"), source=other_mac),
    "to everybody": frame(0x800, ip(own, b"\xff" * 4, MAGIC + b"to everybody"), target=everybody),
    "to the host's loopback": frame(0x800, ip(own, socket.inet_aton("127.0.0.1"), MAGIC + b"to the host's loopback")),
    "by a route of its own": frame(0x800, ip(own, dns, MAGIC + b"by a route of its own", b"\x83\x07\x04" + foreign + b"\1")),
    "an ARP reply for another": frame(0x806, arp(2, other_mac, foreign, own) + MAGIC + b"an ARP reply for another", target=everybody),
}
for _ in range(3):
    for data in sent.values():
        raw.send(data.ljust(60, b"\0"))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as honest:
    honest.sendto(MAGIC + b"allowed", (words["dns"], 53))
answered = set()
raw.settimeout(0.2)
for address in words["ask for"]:
    for _ in range(2):
        raw.send(frame(0x806, arp(1, own_mac, own, socket.inet_aton(address)), target=everybody).ljust(60, b"\0"))
try:
    while True:
        data = raw.recv(2000)
        if data[:6] != own_mac and data[6:12] == own_mac:
            continue
        if data[12:14] == b"\x08\x06" and data[20:22] == b"\0\2":
            answered.add(socket.inet_ntoa(data[28:32]))
except TimeoutError:
    pass
print(json.dumps({"sent": sorted(sent), "answered": sorted(answered)}))
"""


@contextlib.contextmanager
def seen_on_the_host() -> Iterator[set[str]]:
    """What of an attacker's frames comes to the host's network stack, on whichever interface."""
    found: set[str] = set()
    ended = threading.Event()
    everything = socket.htons(3)  # ETH_P_ALL
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, everything) as tapped:
        tapped.settimeout(0.05)

        def look() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    _, magic, rest = tapped.recv(65535).partition(MAGIC)
                    if magic:
                        found.add(rest.rstrip(b"\0").decode(errors="replace"))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            ended.set()
            thread.join()


def in_guest(driver: Driver, sandbox: str, program: str, argument: object) -> Any:
    """A Python program as the guest's root."""
    words = ("/usr/bin/python3", "-c", program, json.dumps(argument))
    done = driver.gateway.run(sandbox, *words)
    assert done.code == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_no_frame_but_plain_ipv4_of_its_own_leaves_a_machine(driver: Driver) -> None:
    first, second = two_running(driver)
    network = driver.plan(first)["network"]
    lease, other = network["lease"], driver.plan(second)["network"]["lease"]
    where = f"ip neigh show {lease['host_ip']}; ping -c 1 -W 1 {lease['host_ip']} >/dev/null 2>&1; ip neigh show {lease['host_ip']}"  # fmt: skip
    neighbours = driver.gateway.run(first, "/bin/sh", "-c", where).stdout.decode()
    words = {
        "own": lease["guest_ip"],
        "foreign": other["guest_ip"],
        "gateway_mac": neighbours.split("lladdr ", 1)[1].split()[0],
        "dns": network["dns"][0],
        "ask for": [
            *addresses_of_the_host(),
            *(lease["host_ip"], other["host_ip"], other["guest_ip"]),
            *("127.0.0.1", network["host_alias"], "192.0.2.1", "10.0.0.1"),
        ],
    }
    with seen_on_the_host() as seen:
        told = in_guest(driver, first, FRAMES, words)
        until(lambda: "allowed" in seen, lambda: seen, limit_s=5)
    assert len(told["sent"]) > 10
    assert seen == {"allowed"}
    assert set(told["answered"]) <= {lease["host_ip"]}


FLOOD = """
import json, socket, sys
address, count = json.loads(sys.argv[1])
kept = []
for number in range(count):
    if number % 400 == 0:
        kept.clear()
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    kept.append(one)
    try:
        one.sendto(b"x", (address, 53))
    except OSError:
        pass
print(json.dumps(len(kept)))
"""


def followed_connections() -> int:
    """By the host."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def test_one_guest_cannot_use_up_what_the_host_follows_of_connections(
    driver: Driver,
) -> None:
    driver.options += ["--max-connections", "300"]
    driver.restart()
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    address = driver.plan(sandbox)["network"]["dns"][0]
    before = followed_connections()
    in_guest(driver, sandbox, FLOOD, [address, 3000])
    assert followed_connections() - before <= 300
    assert driver.gateway.shell(sandbox, "echo alive") == "alive\n", "its session lasts"


TRIES = """
import json, socket, sys, threading, time
targets, seconds = json.loads(sys.argv[1])
end, reached = time.monotonic() + seconds, set()
def reach(target):
    while time.monotonic() < end:
        try:
            with socket.create_connection(tuple(target), 0.3):
                reached.add(tuple(target))
        except OSError:
            time.sleep(0.02)
threads = [threading.Thread(target=reach, args=(target,)) for target in targets]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(sorted(reached)))
"""


@contextlib.contextmanager
def listening(*addresses: str) -> Iterator[list[tuple[str, int]]]:
    """Services of the host's that no guest may reach."""
    servers = [socket.create_server((address, 0)) for address in addresses]
    try:
        yield [server.getsockname() for server in servers]
    finally:
        for server in servers:
            server.close()


def flush(tap: str, where: str) -> None:
    inside = ["ip", "netns", "exec", tap] if where == "inside" else []
    subprocess.run([*inside, "nft", "flush", "ruleset"], check=True)


@pytest.mark.parametrize("where", ["host", "inside"])
def test_a_flushed_firewall_opens_nothing_and_comes_back(
    driver: Driver, where: str
) -> None:
    first, second = two_running(driver)
    network = driver.plan(first)["network"]
    lease, other = network["lease"], driver.plan(second)["network"]["lease"]
    works = lambda: driver.gateway.shell(first, "echo works") == "works\n"  # noqa: E731
    assert works()
    driver.gateway.run(second, "/bin/sh", "-c", "python3 -m http.server 8000 >/dev/null 2>&1 &")  # fmt: skip
    with listening("127.0.0.1", "0.0.0.0") as services:
        ports = [port for _, port in services]
        doors = [lease["host_ip"], network["host_alias"], other["host_ip"]]
        targets = [[door, port] for door in [*doors, "127.0.0.1"] for port in ports]
        targets += [[address, ports[1]] for address in addresses_of_the_host()]
        targets.append([other["guest_ip"], 8000])
        flushed = threading.Timer(1, flush, (lease["tap"], where))
        flushed.start()
        assert in_guest(driver, first, TRIES, [targets, 4]) == []
        flushed.join()
    begun = time.monotonic()
    assert works()
    assert time.monotonic() - begun < 5
    assert driver.condition(first)[1] == "Running"
