"""SIGKILL of the driver and of QEMU, damage and lack of space, at every stage of keeping and restoring memory."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from tests.system.machines import Driver, in_background, is_asked
from tests.system.stage import WITHOUT_TEMPLATES, lend_images, new_state
from tests.system.workloads import check_thawed, check_whole, marked

MS_REMOUNT = 32
_libc = ctypes.CDLL(None, use_errno=True)


def test_the_driver_is_killed_during_a_suspension(driver: Driver) -> None:
    """At any moment of it: the next one finishes it, or it never was."""
    sandbox = marked(driver)
    for after_s in (0.0, 0.1, 0.2, 0.3, 0.45, 0.6):
        in_background(lambda: driver.stop(sandbox))
        until(lambda: is_asked(driver, sandbox, "suspended"), pause_s=0.002)
        time.sleep(after_s)
        driver.restart()
        driver.wait(sandbox, "Suspended", 30)
        driver.start_sandbox(sandbox)
        check_whole(driver, sandbox)


def test_the_driver_is_killed_during_a_resume(driver: Driver) -> None:
    sandbox = marked(driver)
    for after_s in (0.05, 0.15, 0.4, 0.75, 0.9, 1.05):
        driver.stop(sandbox)
        driver.start_sandbox(sandbox)
        time.sleep(after_s)
        driver.restart()
        check_whole(driver, sandbox)


def test_the_driver_is_killed_just_before_libvirt_begins_qemu(driver: Driver) -> None:
    """libvirt itself would never let go of such a machine."""
    sandbox = marked(driver)
    domain = driver.plan(sandbox)["domain"]
    state = driver.host.state / "libvirt" / "run" / "qemu" / f"{domain}.xml"
    for _ in range(5):  # QEMU begins some 15 ms later: not every kill comes in time
        driver.stop(sandbox)
        driver.start_sandbox(sandbox)
        while not state.exists():
            time.sleep(0.0005)
        driver.kill()
        unstarted = "pid='0'" in state.read_text()
        driver.start()
        check_whole(driver, sandbox)
        if unstarted:
            break
    else:
        pytest.fail("no kill came between libvirt's note and QEMU's beginning")
    assert "was never begun" in driver.log.read_text()


def test_the_driver_is_killed_during_a_snapshot(driver: Driver) -> None:
    sandbox = marked(driver)
    for number, after_s in enumerate((0.02, 0.1, 0.25, 0.4, 0.6, 1.2)):
        name = f"s{number}"
        in_background(partial(driver.snapshot, sandbox, name))
        time.sleep(after_s)
        driver.restart()
        check_whole(driver, sandbox)
        if name in driver.snapshots(sandbox):
            driver.go_back(sandbox, name)
            check_whole(driver, sandbox)


def test_qemu_is_killed_during_a_suspension(driver: Driver) -> None:
    sandbox = marked(driver)
    pid = driver.machine_pid(sandbox)
    in_background(lambda: driver.stop(sandbox))
    time.sleep(0.15)
    os.kill(pid, signal.SIGKILL)
    until(
        lambda: driver.condition(sandbox)[0] == "Suspended=True",
        lambda: driver.condition(sandbox),
    )
    driver.start_sandbox(sandbox)
    driver.wait(sandbox, "Running")
    driver.gateway.wait_hello(sandbox, 2)
    assert driver.gateway.shell(sandbox, "cat /sandbox/note") == "disk\n"


@pytest.mark.parametrize("after_s", [0.1, 0.25, 0.45])
def test_qemu_is_killed_during_a_snapshot(driver: Driver, after_s: float) -> None:
    """A crash like any other: nothing is half there, and a start boots it on its disk."""
    sandbox = marked(driver)
    pid = driver.machine_pid(sandbox)
    in_background(lambda: driver.snapshot(sandbox, "s"))
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    driver.wait(sandbox, "MachineCrashed")
    until(lambda: driver.record(sandbox)["phase"] == "failed")
    driver.start_sandbox(sandbox)
    driver.gateway.wait_hello(sandbox, 2)
    driver.wait(sandbox, "Running")
    assert driver.gateway.shell(sandbox, "cat /sandbox/note") == "disk\n"
    check_thawed(driver, sandbox)
    assert not (driver.directory(sandbox) / "capture.part").exists()
    if driver.snapshots(sandbox):  # it was complete already
        driver.go_back(sandbox, "s")
        check_whole(driver, sandbox)


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


def part_of(driver: Driver, sandbox: str, name: str) -> Path:
    return driver.directory(sandbox) / "suspended" / name


@dataclass(frozen=True)
class Damage:
    """To a part of what was kept; `told`: what is said of it."""

    part: str
    told: str
    do: Callable[[Path], object]


DAMAGE = {
    "a bit early in the memory": Damage(
        "memory", "memory has changed", lambda p: flip(p, 0.02)
    ),
    "a bit in the devices' state": Damage(
        "state", "state has changed", lambda p: flip(p, 0.7)
    ),
    "a bit late in the memory": Damage(
        "memory", "memory has changed", lambda p: flip(p, 0.9)
    ),
    "a bit in the domain": Damage(
        "domain.xml", "domain.xml has changed", lambda p: flip(p, 0.5)
    ),
    "a truncated memory": Damage(
        "memory", "memory has another size", lambda p: os.truncate(p, 400 * 2**20)
    ),
    "an edited manifest": Damage(
        "manifest.json",
        "manifest",
        lambda p: p.write_text(p.read_text().replace('"vcpus": 1', '"vcpus": 2')),
    ),
    "a missing state": Damage("state", "state is gone", Path.unlink),
    "a truncated manifest": Damage(
        "manifest.json", "manifest", lambda p: os.truncate(p, 100)
    ),
}
WRITTEN = ("a layer that was written to", "a base disk that was written to")
SAMPLE = ("a bit early in the memory", *WRITTEN)
"""Each is found by a check of its own. That a manifest is, too, is told of above; the boot after it is these ones'."""


@contextlib.contextmanager
def mended_after(part: Path) -> Iterator[None]:
    """Its contents are what they were."""
    copy = part.with_name(f"{part.name}.intact")
    subprocess.run(["cp", "-p", "--sparse=always", part, copy], check=True)
    yield
    copy.rename(part)


def test_every_damage_is_told_of_and_what_was_mended_comes_back(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--on-restore-failure", "fail")
    sandbox = marked(driver)
    driver.stop(sandbox)
    for name, damage in DAMAGE.items():
        part = part_of(driver, sandbox, damage.part)
        with mended_after(part):
            damage.do(part)
            driver.start_sandbox(sandbox)
            until(
                lambda told=damage.told: told_of(driver, sandbox, told),
                lambda name=name: (name, driver.condition(sandbox)),
            )
    driver.start_sandbox(sandbox)
    check_whole(driver, sandbox)


def told_of(driver: Driver, sandbox: str, what: str) -> bool:
    _, reason, message = driver.condition(sandbox)
    return reason == "RestoreFailed" and what in message


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SAMPLE else pytest.mark.soak)
        for name in (*DAMAGE, *WRITTEN)
    ],
)
def test_what_is_damaged_is_booted_cold_and_kept_aside(
    request: pytest.FixtureRequest, name: str
) -> None:
    # A template would be damaged with its base disk.
    driver = request.getfixturevalue("booting" if "base" in name else "driver")
    sandbox = marked(driver)
    driver.stop(sandbox)
    if name in DAMAGE:
        DAMAGE[name].do(part_of(driver, sandbox, DAMAGE[name].part))
    else:
        record = driver.record(sandbox)
        os.utime(record["base"] if "base" in name else record["layers"][-1])
    driver.start_sandbox(sandbox)
    message = driver.wait(sandbox, "Running")
    assert "could not be restored" in message
    assert "lost" in message
    driver.gateway.wait_hello(sandbox, 2)
    assert driver.gateway.shell(sandbox, "cat /sandbox/note") == "disk\n"
    assert (
        driver.gateway.shell(sandbox, "test -e /dev/shm/note || echo gone") == "gone\n"
    )
    assert (driver.directory(sandbox) / "not-restored").is_dir()


def test_a_machine_that_dies_while_it_returns_is_booted_cold_once(
    driver: Driver,
) -> None:
    sandbox = marked(driver)
    domain = driver.plan(sandbox)["domain"]
    driver.stop(sandbox)
    record = driver.directory(sandbox) / "record.json"
    pid = driver.host.state / "libvirt" / "run" / "qemu" / f"{domain}.pid"
    driver.start_sandbox(sandbox)
    until(lambda: '"consumed":true' in record.read_text(), pause_s=0.001)
    os.kill(int(pid.read_text()), signal.SIGKILL)
    message = driver.wait(sandbox, "Running")
    assert "could not be restored" in message
    driver.gateway.wait_hello(sandbox, 2)
    assert driver.gateway.shell(sandbox, "cat /sandbox/note") == "disk\n"


def test_a_machine_that_dies_before_it_went_on_costs_no_memory(
    driver: Driver,
) -> None:
    """While it is loaded, and while it waits for its memory to be compared."""
    sandbox = marked(driver)
    domain = driver.plan(sandbox)["domain"]
    record = driver.directory(sandbox) / "record.json"
    pid = driver.host.state / "libvirt" / "run" / "qemu" / f"{domain}.pid"
    for after_s in (0.0, 0.04, 0.08, 0.12):
        driver.stop(sandbox)
        driver.start_sandbox(sandbox)
        until(lambda: pid.exists() and pid.read_text().strip(), pause_s=0.001)
        number = int(pid.read_text())
        time.sleep(after_s)
        if '"consumed":true' in record.read_text():
            continue
        os.kill(number, signal.SIGKILL)
        if '"consumed":true' in record.read_text():
            break  # in that very moment: the memory counts as used
        check_whole(driver, sandbox)


def test_a_stop_in_the_middle_of_a_resume_costs_no_memory(driver: Driver) -> None:
    sandbox = marked(driver)
    for after_s in (0.02, 0.08, 0.15, 0.25, 0.4):
        driver.stop(sandbox)
        driver.start_sandbox(sandbox)
        time.sleep(after_s)
        begun = time.monotonic()
        driver.stop(sandbox)
        assert time.monotonic() - begun < 10
        driver.start_sandbox(sandbox)
        check_whole(driver, sandbox)


def test_two_resumes_and_a_start_at_once_are_one(driver: Driver) -> None:
    sandbox = marked(driver)
    domain = driver.plan(sandbox)["domain"]
    driver.stop(sandbox)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(driver.resume, sandbox) for _ in range(2)]
        driver.start_sandbox(sandbox)
        for call in calls:
            call.result()
    check_whole(driver, sandbox)
    command = ["pgrep", "-c", "-f", f"guest={domain},"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout == "1\n", "two machines on one disk"


@pytest.mark.parametrize("after_s", [0.15, 0.5])
@pytest.mark.parametrize("what", ["suspend", "resume", "snapshot"])
def test_a_delete_in_the_middle_leaves_nothing(
    driver: Driver, what: str, after_s: float
) -> None:
    before, sandbox = driver.layers(), marked(driver)
    if what == "suspend":
        in_background(lambda: driver.stop(sandbox))
    elif what == "snapshot":
        in_background(lambda: driver.snapshot(sandbox, "s"))
    else:
        driver.stop(sandbox)
        driver.start_sandbox(sandbox)
    time.sleep(after_s)
    assert driver.delete(sandbox)
    assert not driver.directory(sandbox).exists()
    assert driver.layers() == before


def test_the_host_restarts_while_a_sandbox_is_suspended(driver: Driver) -> None:
    sandbox = marked(driver)
    driver.stop(sandbox)
    driver.kill(signal.SIGKILL)
    record = driver.directory(sandbox) / "record.json"
    text = record.read_text()  # another boot of the host: nothing ran, nothing was held
    boot_id = json.loads(text)["host_boot_id"]
    record.write_text(text.replace(boot_id, "00000000-0000-0000-0000-000000000000"))
    driver.start()
    assert driver.condition(sandbox)[1] == "Suspended"
    driver.start_sandbox(sandbox)
    check_whole(driver, sandbox)


def test_a_disk_that_fills_up_in_the_middle_leaves_the_sandbox_running(
    new_driver: Callable[..., Driver], shared: Driver
) -> None:
    state = Path(tempfile.mkdtemp(prefix="vmdriver-test-small-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3g", "none", state], check=True)
    try:
        lend_images(shared.host.state, new_state(state))
        driver = new_driver(*WITHOUT_TEMPLATES, state=state)
        sandbox = marked(driver)
        in_background(lambda: shrink_when(state, sandbox))
        events = driver.operate("suspend", sandbox, fails=True)
        assert "space" in str(events), events
        check_whole(driver, sandbox)
        assert not (state / "sandboxes" / sandbox / "capture.part").exists()
        events = driver.operate("suspend", sandbox, fails=True)
        assert "MiB are free" in str(events), "asked again, it does not even begin"
        subprocess.run(["mount", "-o", "remount,size=3g", state], check=True)
        driver.suspend(sandbox)
        driver.resume(sandbox)
        check_whole(driver, sandbox)
        assert driver.delete(sandbox)
        driver.used.clear()
        driver.kill(signal.SIGTERM)
    finally:
        subprocess.run(["umount", "-l", state], check=True)
        state.rmdir()


def shrink_when(state: Path, sandbox: str) -> None:
    """Once it is written to, it has 8 MiB more at most: at once, since 100 MiB take a fifth of a second."""
    part = state / "sandboxes" / sandbox / "capture.part" / "memory"
    until(lambda: part.exists() and part.stat().st_blocks, pause_s=0.0005, limit_s=60)
    until(lambda: resized(state, shutil.disk_usage(state).used + 8 * 2**20), pause_s=0)


def resized(state: Path, size: int) -> bool:
    """Whether that tmpfs has that size now: it must not hold more."""
    options = f"size={size}".encode()
    done = _libc.mount(b"none", str(state).encode(), b"tmpfs", MS_REMOUNT, options)
    return bool(done == 0)
