"""What a real guest reaches: listeners in other network namespaces, beside other tables, and not the host."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.serve import SERVE
from tests.netns.conftest import STRICT, Net
from tests.netns.test_names import RESOLVER
from tests.system.machines import Driver

ALIAS = "192.168.127.254"
DIAL = """
import socket, sys
try:
    c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)
    print(c.recv(99).decode())
except OSError as e:
    print("no", e)
"""


RESOLVE = """
import socket
print(socket.getaddrinfo("wiki", 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
"""
WITH_RESOLV_CONF = """
mount --make-private "$(findmnt -no TARGET -T /etc/resolv.conf)" &&
mount --bind "$0" "$(readlink -f /etc/resolv.conf)" && exec "$@"
"""
"""A process whose host has another resolv.conf, and everything else as it is."""


@pytest.fixture
def around() -> Iterator[Net]:
    """Servers around this host, in namespaces of their own. One test at a time: it is one host."""
    lock = (Path(tempfile.gettempdir()) / "vmdriver-test-around.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    net = Net(f"vmds{os.getpid()}")
    try:
        for name, here, there in (
            ("vmdpub", "203.0.113.1/24", "203.0.113.10/24"),
            ("vmdpriv", "10.99.0.1/24", "10.99.0.10/24"),
            ("vmdmeta", "169.254.169.1/24", "169.254.169.254/24"),
        ):
            space = net.space(name)
            net.link(name, name, space, here, there)
            net.serve(there.split("/")[0], 80, space)
        net.serve("0.0.0.0", 18888)
        yield net
    finally:
        net.close()
        lock.close()


def reaches(driver: Driver, sandbox: str, address: str, port: int) -> str | None:
    answer = (
        driver.gateway.run(sandbox, "python3", "-IS", "-c", DIAL, address, str(port))
        .stdout.decode()
        .strip()
    )
    return None if answer.startswith("no") else answer


def test_what_a_guest_reaches_under_the_default_egress(
    driver: Driver, around: Net
) -> None:
    sandbox, other = driver.create(), driver.create()
    addresses = {b: driver.inspect(b)["addresses"] for b in (sandbox, other)}
    host, guest = addresses[sandbox]["host_ip"], addresses[sandbox]["guest_ip"]
    # 203.0.113.0/24 is a network of this host here, and thereby private to it.
    assert reaches(driver, sandbox, "203.0.113.10", 80) is None
    assert reaches(driver, sandbox, "10.99.0.10", 80) is None
    assert reaches(driver, sandbox, "169.254.169.254", 80) is None
    assert reaches(driver, sandbox, host, 18888) is None
    assert reaches(driver, sandbox, ALIAS, 18888) is None
    assert reaches(driver, sandbox, addresses[other]["guest_ip"], 22) is None
    assert around.dial(f"{around.prefix}-vmdpub", guest, 22) is None


def test_open_egress_goes_out_under_the_hosts_address_and_a_strict_table_wins(
    new_driver, around: Net
) -> None:
    driver = new_driver("--egress", "open", "--host-access", "18888")
    sandbox = driver.create()
    guest = driver.inspect(sandbox)["addresses"]["guest_ip"]
    assert reaches(driver, sandbox, ALIAS, 18888) == guest, "a service of the host's"
    assert reaches(driver, sandbox, "203.0.113.10", 80) == "203.0.113.1"
    assert reaches(driver, sandbox, "10.99.0.10", 80) == "10.99.0.1"
    assert reaches(driver, sandbox, "169.254.169.254", 80) is None
    subprocess.run(["nft", "-f", "-"], input=STRICT, text=True, check=True)
    try:
        assert (
            driver.gateway.shell(sandbox, "echo the gateway is still there")
            == "the gateway is still there\n"
        )
        assert reaches(driver, sandbox, "203.0.113.10", 80) is None
        findings = {f["check"]: f for f in driver.cli("doctor")["findings"]}
        assert "ip strict forwarding" in findings["firewall"]["message"]
        driver.stop(sandbox)
        driver.start_sandbox(sandbox)
        driver.gateway.wait_hello(sandbox, 2)
    finally:
        subprocess.run(["nft", "delete", "table", "ip", "strict"], check=True)


def test_a_guest_resolves_names_through_a_resolver_that_listens_on_the_loopback_alone(
    new_driver, tmp_path: Path
) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver 127.0.0.77\nsearch corp.example\n")
    command = ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c")
    resolver = subprocess.Popen(
        [sys.executable, "-c", RESOLVER, "127.0.0.77", "192.0.2.80"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert resolver.stdout is not None
    assert resolver.stdout.readline() == "up\n"
    try:
        driver = new_driver(command=[*command, WITH_RESOLV_CONF, str(conf), *SERVE])
        sandbox = driver.create()

        def resolved() -> str:
            return driver.gateway.run(sandbox, "python3", "-c", RESOLVE).stdout.decode()

        assert resolved() == "192.0.2.80\n"
        asked = bytes.fromhex(resolver.stdout.readline())
        assert asked[12:].startswith(b"\x04wiki\x04corp\x07example\0")
        assert driver.cli("net", sandbox)["name_servers"] == [ALIAS]
        (tried,) = driver.cli("net", sandbox, f"{ALIAS}:53")["tried"]
        assert (tried["outcome"]["verdict"], tried["as_explained"]) == (
            "answered",
            True,
        )
        driver.restart()
        assert resolved() == "192.0.2.80\n", "the machine has outlived its driver"
    finally:
        resolver.kill()
        resolver.wait()
        resolver.stdout.close()
