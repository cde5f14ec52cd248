"""What code that escaped into a QEMU can leave where root works, and reach of the host's sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.adversary.inside import addresses_of_the_host, in_machine
from tests.contract.canary import watched
from tests.system.machines import Driver


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the host's."""
    path = tmp_path / "canary"
    path.write_bytes(b"nobody's business" * 4096)
    return path


PLANT = """
import errno, json, os, sys
folders, target = json.load(sys.stdin)
done = []
for folder in folders:
    for name in ("planted", "qemu.conf", "master-key.aes", "monitor.sock"):
        path = os.path.join(folder, name)
        for act in (lambda: os.unlink(path), lambda: os.symlink(target, path), lambda: os.mkfifo(path + ".fifo"),
                    lambda: os.mkdir(path + ".d"), lambda: os.link(target, path + ".hard")):
            try:
                act()
                done.append(path)
            except OSError:
                pass
print(json.dumps(done))
"""


def test_a_qemu_can_leave_nothing_in_a_folder_where_root_works(
    driver: Driver, canary: Path
) -> None:
    """isolation: libvirt's own folder belonged to the user that machines ran as, and root followed a link in it."""
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    state = driver.host.state
    folders = [
        path for path in state.rglob("*") if path.is_dir() and not path.is_symlink()
    ]
    folders += [state, state.parent, driver.socket.parent, Path("/run"), Path("/tmp")]
    pid = driver.machine_pid(sandbox)
    with watched(canary):
        made = in_machine(pid, PLANT, [[str(f) for f in folders], str(canary)])
        assert made == []
        driver.stop(sandbox)
        driver.start_sandbox(sandbox)
        driver.gateway.wait_hello(sandbox, 2)


LOCAL = """
import json, socket, sys
found = []
for kind, where in json.load(sys.stdin):
    address = tuple(where) if kind == "inet" else "\\0" + where if kind == "abstract" else where
    try:
        with socket.socket(socket.AF_INET if kind == "inet" else socket.AF_UNIX) as one:
            one.settimeout(1)
            one.connect(address)
            found.append([kind, where])
    except OSError:
        pass
print(json.dumps(found))
"""


def test_a_qemu_reaches_no_socket_of_the_host(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    lease = driver.plan(sandbox)["network"]["lease"]
    with (
        socket.create_server(("127.0.0.1", 0)) as own,
        socket.create_server(("0.0.0.0", 0)) as everywhere,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        abstract.bind("\0vmdriver-adversary")
        abstract.listen()
        services = [own.getsockname(), everywhere.getsockname()]
        places = [["inet", ["127.0.0.1", port]] for _, port in services]
        places += [["inet", [a, services[1][1]]] for a in addresses_of_the_host()]
        places += [["inet", [lease["host_ip"], port]] for _, port in services]
        places += [["inet", ["127.0.0.1", driver.gateway.port]]]
        places += [["abstract", "vmdriver-adversary"]]
        places += [["unix", str(path)] for path in driver.host.state.rglob("*.sock")]
        places += [["unix", str(driver.socket)]]
        assert in_machine(driver.machine_pid(sandbox), LOCAL, places) == []
