"""The same against a libvirtd of the test's own, over qemu:///system."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.adversary.inside import everything_below
from tests.adversary.test_box import EXPECTED, everything, hard_limit, status
from tests.adversary.test_mapped_memory import sealed
from tests.adversary.test_users import as_user, user_of
from tests.fakes.serve import WORK
from tests.fakes.waiting import until
from tests.netns.conftest import run
from tests.system.machines import Driver, Host, qemus_of
from tests.system.stage import WITHOUT_TEMPLATES
from tests.system.test_throttles import bounds

LIBRARY = r".*/read-only-memory-[0-9a-f]+\.so"
KEY = r"/var/lib/libvirt/qemu/domain-\d+-[^/]+/master-key\.aes"


@pytest.fixture
def libvirtd() -> Iterator[int]:
    """Its process id."""
    if (
        Path("/run/libvirt/libvirt-sock").exists()
        and subprocess.run(
            ["pgrep", "-x", "libvirtd"], check=False, capture_output=True
        ).stdout
    ):
        pytest.skip("this host's own libvirtd is running and is not ours to use")
    processes = []
    try:
        for program, socket in (
            ("virtlogd", "virtlogd-sock"),
            ("libvirtd", "libvirt-sock"),
        ):
            processes.append(
                subprocess.Popen([f"/usr/sbin/{program}"], stderr=subprocess.DEVNULL)
            )
            for _ in range(200):
                if Path("/run/libvirt", socket).exists():
                    break
                time.sleep(0.05)
        yield processes[-1].pid
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(20)
        for name in (
            "libvirt-sock",
            "libvirt-sock-ro",
            "libvirt-admin-sock",
            "virtlogd-sock",
            "virtlogd-admin-sock",
        ):
            Path("/run/libvirt", name).unlink(missing_ok=True)


def test_a_sandbox_on_a_libvirt_daemon(
    libvirtd: int, new_driver: Callable[..., Driver], fresh_host: Host
) -> None:
    options = ["--connection", "qemu:///system", "--stop-grace-s", "3"]
    options += ["--max-disk-iops", "5000", "--max-net-mbit-s", "100"]
    # No way leads a daemon's QEMU around a closed folder, below which this checkout may lie.
    boot = fresh_host.state / "boot"
    boot.unlink()
    shutil.copytree(WORK / "boot", boot, symlinks=True)
    driver = new_driver(*WITHOUT_TEMPLATES, *options, host=fresh_host)
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    its_network_is_its_own(driver, sandbox)
    the_rest_of_its_wall_is_there(driver, sandbox)
    driver.gateway.shell(sandbox, "echo kept > /sandbox/f")
    driver.restart()
    assert driver.condition(sandbox)[1] == "Running"
    driver.stop(sandbox)
    driver.start_sandbox(sandbox)
    driver.gateway.wait_hello(sandbox, 2)
    assert driver.gateway.shell(sandbox, "cat /sandbox/f") == "kept\n"
    driver.gateway.shell(sandbox, "echo kept > /dev/shm/note")
    driver.snapshot(sandbox, "noted")
    driver.suspend(sandbox)
    driver.resume(sandbox)
    assert driver.gateway.shell(sandbox, "cat /dev/shm/note") == "kept\n"
    its_network_is_its_own(driver, sandbox)
    the_rest_of_its_wall_is_there(driver, sandbox)
    sealed(driver, pid_of(driver, sandbox), driver.directory(sandbox))
    a_daemon_that_does_not_react(driver, sandbox, libvirtd)
    driver.go_back(sandbox, "noted")
    driver.wait(sandbox, "Running")
    assert driver.gateway.shell(sandbox, "cat /dev/shm/note") == "kept\n"
    assert driver.delete(sandbox)


def its_network_is_its_own(driver: Driver, sandbox: str) -> None:
    """Its tap was moved into its namespace; QEMU, which the daemon begins where it is, is in one
    that has nothing.
    """
    plan = driver.plan(sandbox)
    assert "namespace" in plan["wall"]
    tap = plan["network"]["lease"]["tap"]
    inside = ["nsenter", f"--net=/run/netns/{tap}"]
    link = run(*inside, "ip", "-d", "link", "show", tap).stdout
    assert "tun type tap" in link
    assert "LOWER_UP" in link, "QEMU has it open"
    assert "vmt" not in run("ip", "link").stdout
    assert "policy drop" in run(*inside, "nft", "list", "ruleset").stdout
    machine = Path("/proc", str(pid_of(driver, sandbox)))
    assert os.readlink(machine / "exe").rpartition("/")[2].startswith("qemu-system")
    assert (machine / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    links = (machine / "net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in links] == ["lo"]


def pid_of(driver: Driver, sandbox: str) -> int:
    """Of its QEMU."""
    (pid,) = qemus_of(driver, sandbox)
    return pid


def the_rest_of_its_wall_is_there(driver: Driver, sandbox: str) -> None:
    """Everything but a cgroup of ours: as with the embedded connection (tests/adversary)."""
    plan, pid = driver.plan(sandbox), pid_of(driver, sandbox)
    parts = {"uid", "namespace", "box", "seccomp", "limits", "sealed-memory"}
    assert set(plan["wall"]) == parts
    uid, gid = plan["user"]["uid"], plan["user"]["gid"]
    assert user_of(pid) == (uid, gid)
    layers = driver.host.state / "layers" / str(uid)
    files = everything_below(driver.directory(sandbox), layers)
    layer = Path(next(d["path"] for d in plan["disks"] if d["role"] == "root")).name
    can = {p.name: as_user(uid, gid, p) for p in files if p.is_file()}
    writes = {name for name, rights in can.items() if "w" in rights}
    # virtlogd, which writes what the guest prints, has moved the console away by then.
    assert writes - {"console.log", "console.log.0"} == {layer, "status.img"}
    own = [re.escape(d["path"]) for d in plan["disks"]]
    own += [re.escape(path) for d in plan["disks"] for path in d["backing"]]
    memory = [re.escape(f"{driver.directory(sandbox)}/") + "[a-z]+/memory"]
    allowed = re.compile("|".join(EXPECTED + own + memory + [LIBRARY, KEY]))
    seen = everything(pid, "/usr", str(layers))
    assert [path for path in seen if not allowed.fullmatch(path)] == []
    found = status(pid)
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    assert hard_limit(pid, "Max open files") == "1024"
    assert int(hard_limit(pid, "Max address space")) < 2**35
    asked = ("blkdeviotune", plan["domain"], "vda", "--live")
    told = run("virsh", "--connect", "qemu:///system", *asked).stdout
    assert re.search(r"^total_iops_sec *: 5000$", told, re.MULTILINE), told
    assert bounds(plan["network"]["lease"]["tap"]) == ["100Mbit"] * 2


def a_daemon_that_does_not_react(driver: Driver, sandbox: str, daemon: int) -> None:
    """The machine is down in time; when the daemon goes on, so does the driver, which can begin machines."""
    notes = Path("/run/libvirt/qemu").glob("*.pid")
    (noted,) = (note for note in notes if note.name != "driver.pid")
    machine = Path("/proc", noted.read_text().strip(), "exe")
    assert machine.exists()
    os.kill(daemon, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            stopping = pool.submit(driver.stop, sandbox)
            until(lambda: not machine.exists(), "QEMU is still there", 3 + 15)
            # Until the driver has lost the connection, and asks for another.
            stopping.exception()
    finally:
        os.kill(daemon, signal.SIGCONT)
    driver.wait(sandbox, "Stopped")
