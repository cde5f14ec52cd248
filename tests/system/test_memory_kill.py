"""SIGKILL of the driver and of QEMU, damage and lack of space, at every stage of keeping and restoring memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.system.conftest import Driver, Host
from tests.system.test_suspend import suspending
from tests.system.workloads import CHAIN, check_chain, command

pytestmark = pytest.mark.timeout(400)  # many cycles of real machines, on a busy host


def in_background(call: Callable[[], object]) -> None:
    """Whoever asked loses its driver: what it is told then does not matter."""

    def work() -> None:
        with contextlib.suppress(grpc.RpcError, ValueError, AssertionError):
            call()

    threading.Thread(target=work, daemon=True).start()


def marked(driver: Driver) -> str:
    box = suspending(driver, command=command(CHAIN))
    driver.gateway.shell(
        box,
        "echo kept > /dev/shm/note; echo disk > /sandbox/note; sync;"
        "while [ ! -s /sandbox/chain ]; do sleep 0.1; done",
    )
    return box


def check_whole(driver: Driver, box: str) -> None:
    """Nothing of the memory was lost."""
    driver.wait(box, "Running")
    assert driver.gateway.shell(box, "cat /dev/shm/note") == "kept\n"
    check_chain(driver.gateway.shell(box, "cat /sandbox/chain"))
    entries = driver.cli("inspect", box)["ledger"]
    assert not [e for e in entries if e["scope"] == "capture"], (
        "something is still held still"
    )


@pytest.mark.parametrize("after_s", [0.02, 0.12, 0.2, 0.3, 0.45, 0.6])
def test_the_driver_is_killed_during_a_suspension(
    driver: Driver, after_s: float
) -> None:
    box = marked(driver)
    in_background(lambda: driver.stop(box))
    time.sleep(after_s)
    driver.restart()
    driver.wait(box, "Suspended", 30)
    driver.start_sandbox(box)
    check_whole(driver, box)


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.4, 0.75, 0.9, 1.05])
def test_the_driver_is_killed_during_a_resume(driver: Driver, after_s: float) -> None:
    box = marked(driver)
    driver.stop(box)
    driver.start_sandbox(box)
    time.sleep(after_s)
    driver.restart()
    check_whole(driver, box)


def test_the_driver_is_killed_just_before_libvirt_begins_qemu(driver: Driver) -> None:
    """libvirt itself would never let go of such a machine."""
    box = marked(driver)
    domain = driver.cli("inspect", box)["record"]["plan"]["domain"]
    state = driver.host.state / "libvirt" / "run" / "qemu" / f"{domain}.xml"
    for _ in range(5):  # QEMU begins some 15 ms later: not every kill comes in time
        driver.stop(box)
        driver.start_sandbox(box)
        while not state.exists():
            time.sleep(0.0005)
        driver.kill()
        unstarted = "pid='0'" in state.read_text()
        driver.start()
        check_whole(driver, box)
        if unstarted:
            break
    else:
        pytest.fail("no kill came between libvirt's note and QEMU's beginning")
    assert "was never begun" in driver.log.read_text()


@pytest.mark.parametrize("after_s", [0.75, 0.85, 0.95, 1.05, 1.2])
def test_the_driver_is_killed_during_a_snapshot(driver: Driver, after_s: float) -> None:
    box = marked(driver)
    command_line = [
        "snapshot",
        "create",
        box,
        "s",
    ]  # python and grpc need half a second to begin
    in_background(lambda: driver.operate(*command_line))
    time.sleep(after_s)
    driver.restart()
    check_whole(driver, box)
    names = [s["name"] for s in driver.cli("snapshot", "ls", box)]
    if names:
        driver.operate("snapshot", "restore", box, "s")
        check_whole(driver, box)


def test_qemu_is_killed_during_a_suspension(driver: Driver) -> None:
    box = marked(driver)
    pid = driver.machine_pid(box)
    in_background(lambda: driver.stop(box))
    time.sleep(0.15)
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while driver.condition(box)[0] != "Suspended=True":
        assert time.monotonic() < deadline, driver.condition(box)
        time.sleep(0.1)
    driver.start_sandbox(box)
    driver.wait(box, "Running")
    driver.gateway.wait_hello(box, 2)
    assert driver.gateway.shell(box, "cat /sandbox/note") == "disk\n"


def wait_phase(driver: Driver, box: str, phase: str) -> None:
    deadline = time.monotonic() + 30
    while driver.cli("inspect", box)["record"]["phase"] != phase:
        assert time.monotonic() < deadline, phase
        time.sleep(0.1)


@pytest.mark.parametrize("after_s", [0.75, 0.9, 1.05])
def test_qemu_is_killed_during_a_snapshot(driver: Driver, after_s: float) -> None:
    """A crash like any other: nothing is half there, and a start boots it on its disk."""
    box = marked(driver)
    pid = driver.machine_pid(box)
    in_background(lambda: driver.operate("snapshot", "create", box, "s"))
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    driver.wait(box, "MachineCrashed")
    wait_phase(driver, box, "failed")
    driver.start_sandbox(box)
    driver.gateway.wait_hello(box, 2)
    driver.wait(box, "Running")
    assert driver.gateway.shell(box, "cat /sandbox/note") == "disk\n"
    entries = driver.cli("inspect", box)["ledger"]
    assert not [e for e in entries if e["scope"] == "capture"]
    assert not (driver.host.state / "sandboxes" / box / "capture.part").exists()
    if driver.cli("snapshot", "ls", box):  # it was complete already
        driver.operate("snapshot", "restore", box, "s")
        check_whole(driver, box)


def flip(path: Path, at: float) -> None:
    """Change one bit at a fraction of the file, where it holds something."""
    with path.open("r+b") as file:
        size = path.stat().st_size
        offset = min(int(size * at), size - 1)
        try:
            offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
        except OSError:
            offset = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 0x10]), offset)


def image(driver: Driver, box: str, name: str) -> Path:
    return driver.host.state / "sandboxes" / box / "suspended" / name


DAMAGE: dict[str, Callable[[Driver, str], object]] = {
    "a bit early in the memory": lambda d, b: flip(image(d, b, "memory"), 0.02),
    "a bit late in the memory": lambda d, b: flip(image(d, b, "memory"), 0.9),
    "a bit in the devices' state": lambda d, b: flip(image(d, b, "state"), 0.7),
    "a bit in the domain": lambda d, b: flip(image(d, b, "domain.xml"), 0.5),
    "an edited manifest": lambda d, b: image(d, b, "manifest.json").write_text(
        image(d, b, "manifest.json").read_text().replace('"vcpus": 1', '"vcpus": 2')
    ),
    "a truncated memory": lambda d, b: os.truncate(image(d, b, "memory"), 400 * 2**20),
    "a truncated manifest": lambda d, b: os.truncate(image(d, b, "manifest.json"), 100),
    "a missing state": lambda d, b: image(d, b, "state").unlink(),
    "a layer that was written to": lambda d, b: os.utime(root_layer(d, b)),
    "a base disk that was written to": lambda d, b: os.utime(base_disk(d, b)),
}


def base_disk(driver: Driver, box: str) -> Path:
    return Path(driver.cli("inspect", box)["record"]["base"])


def root_layer(driver: Driver, box: str) -> Path:
    return Path(driver.cli("inspect", box)["record"]["layers"][-1])


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_booted_cold_and_kept_aside(
    driver: Driver, damage: str
) -> None:
    box = marked(driver)
    driver.stop(box)
    DAMAGE[damage](driver, box)
    driver.start_sandbox(box)
    message = driver.wait(box, "Running")
    assert "could not be restored" in message
    assert "lost" in message
    driver.gateway.wait_hello(box, 2)
    assert driver.gateway.shell(box, "cat /sandbox/note") == "disk\n"
    assert driver.gateway.shell(box, "test -e /dev/shm/note || echo gone") == "gone\n"
    assert (driver.host.state / "sandboxes" / box / "not-restored").is_dir()


def test_the_operator_may_want_a_failure_instead(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--on-restore-failure", "fail")
    box = marked(driver)
    driver.stop(box)
    path = image(driver, box, "manifest.json")
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"vcpus": 1', b'"vcpus": 2'))
    driver.start_sandbox(box)
    assert "manifest" in driver.wait(box, "RestoreFailed")
    path.write_bytes(before)
    driver.start_sandbox(box)
    check_whole(driver, box)


def test_a_machine_that_dies_while_it_returns_is_booted_cold_once(
    driver: Driver,
) -> None:
    box = marked(driver)
    domain = driver.cli("inspect", box)["record"]["plan"]["domain"]
    driver.stop(box)
    record = driver.host.state / "sandboxes" / box / "record.json"
    pid = driver.host.state / "libvirt" / "run" / "qemu" / f"{domain}.pid"
    driver.start_sandbox(box)
    deadline = time.monotonic() + 20
    while '"consumed":true' not in record.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    message = driver.wait(box, "Running")
    assert "could not be restored" in message
    driver.gateway.wait_hello(box, 2)
    assert driver.gateway.shell(box, "cat /sandbox/note") == "disk\n"


def test_two_resumes_and_a_start_at_once_are_one(driver: Driver) -> None:
    box = marked(driver)
    domain = driver.cli("inspect", box)["record"]["plan"]["domain"]
    driver.stop(box)
    calls = [
        threading.Thread(target=driver.operate, args=("resume", box)) for _ in range(2)
    ]
    for call in calls:
        call.start()
    driver.start_sandbox(box)
    for call in calls:
        call.join()
    check_whole(driver, box)
    command = ["pgrep", "-c", "-f", f"guest={domain},"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "1\n", "two machines on one disk"


@pytest.mark.parametrize("after_s", [0.15, 0.5])
@pytest.mark.parametrize("what", ["suspend", "resume", "snapshot"])
def test_a_delete_in_the_middle_leaves_nothing(
    driver: Driver, what: str, after_s: float
) -> None:
    box = marked(driver)
    if what == "suspend":
        in_background(lambda: driver.stop(box))
    elif what == "snapshot":
        in_background(lambda: driver.operate("snapshot", "create", box, "s"))
        time.sleep(0.6)  # until the command has begun
    else:
        driver.stop(box)
        driver.start_sandbox(box)
    time.sleep(after_s)
    assert driver.delete(box)
    assert not (driver.host.state / "sandboxes" / box).exists()
    assert list((driver.host.state / "layers").iterdir()) == []


def test_the_host_restarts_while_a_sandbox_is_suspended(driver: Driver) -> None:
    box = marked(driver)
    driver.stop(box)
    driver.kill(signal.SIGKILL)
    record = driver.host.state / "sandboxes" / box / "record.json"
    text = record.read_text()  # another boot of the host: nothing ran, nothing was held
    boot_id = json.loads(text)["host_boot_id"]
    record.write_text(text.replace(boot_id, "00000000-0000-0000-0000-000000000000"))
    driver.start()
    assert driver.condition(box)[1] == "Suspended"
    driver.start_sandbox(box)
    check_whole(driver, box)


def test_a_disk_that_fills_up_in_the_middle_leaves_the_sandbox_running(
    new_driver: Callable[..., Driver], host: Host, tmp_path: Path
) -> None:
    state = Path(f"/tmp/vmdriver-test-small-{os.getpid()}")
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "none", state], check=True)
    try:
        (state / "boot").symlink_to((host.state / "boot").resolve())
        driver = new_driver(state=state)
        box = marked(driver)
        in_background(lambda: shrink_when(state, box))
        events = driver.operate("suspend", box, fails=True)
        assert "space" in str(events), events
        check_whole(driver, box)
        assert not (state / "sandboxes" / box / "capture.part").exists()
        events = driver.operate("suspend", box, fails=True)
        assert "MiB are free" in str(events), "asked again, it does not even begin"
        subprocess.run(["mount", "-o", "remount,size=3g", state], check=True)
        driver.operate("suspend", box)
        driver.operate("resume", box)
        check_whole(driver, box)
        assert driver.delete(box)
        driver.used.clear()
        driver.kill(signal.SIGTERM)
    finally:
        subprocess.run(["umount", "-l", state], check=True)
        state.rmdir()


def shrink_when(state: Path, box: str) -> None:
    part = state / "sandboxes" / box / "capture.part" / "memory"
    while not part.exists() or part.stat().st_blocks == 0:
        time.sleep(0.0005)
    used = sum(
        p.stat().st_blocks * 512
        for p in state.rglob("*")
        if p.is_file() and not p.is_symlink()
    )
    subprocess.run(
        ["mount", "-o", f"remount,size={used // 2**20 + 8}m", state], check=True
    )
