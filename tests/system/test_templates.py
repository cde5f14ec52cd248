"""New sandboxes that go on from a template's memory, on real machines."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.system.conftest import Driver

pytestmark = pytest.mark.timeout(400)  # many cycles of real machines, on a busy host


def wait_for_template(driver: Driver, timeout_s: float = 60) -> dict[str, object]:
    deadline = time.monotonic() + timeout_s
    while not (found := driver.cli("template", "ls")):
        assert time.monotonic() < deadline, driver.log.read_text()[-3000:]
        time.sleep(0.2)
    return found[0]


IDENTITY = """
cat /etc/machine-id; cat /sys/class/dmi/id/product_uuid; hostname; cat /proc/sys/kernel/random/boot_id
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; cat /sys/class/net/eth0/address
ip -4 -o addr show eth0 | awk '{print $4}'
"""


def test_forks_start_without_a_boot_and_share_nothing_that_is_their_own(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--templates-enabled", "true")
    begun = time.monotonic()
    first = driver.create(name="cold")
    driver.wait(first, "Running")
    cold_s = time.monotonic() - begun
    template = wait_for_template(driver)
    boxes, times = [], []
    for number in range(8):
        begun = time.monotonic()
        boxes.append(driver.create(name=f"fork-{number}", wait=False))
        driver.wait(boxes[-1], "Running")
        times.append(time.monotonic() - begun)
    print(f"cold {cold_s:.2f} s, forks {times}")
    assert min(times) < cold_s / 2
    seen = [
        driver.gateway.wait_hello(b) and identity(driver, b) for b in [first, *boxes]
    ]
    for column in zip(*seen, strict=True):
        assert len(set(column)) == 9, column
    shell = driver.gateway.shell
    for box in boxes[:2]:
        assert shell(box, "cat /sandbox/mine 2>/dev/null || echo none") == "none\n"
        shell(box, f"echo {box} > /sandbox/mine; sync")
    assert (
        driver.cli("inspect", boxes[0])["record"]["plan"]["template"] == template["key"]
    )
    driver.cli_plain("template", "rm", str(template["key"]))
    assert (
        shell(boxes[0], "cat /sandbox/mine; ls -R /usr >/dev/null") == f"{boxes[0]}\n"
    )
    driver.stop(boxes[0])
    driver.start_sandbox(boxes[0])
    driver.gateway.wait_hello(boxes[0], 2)
    assert shell(boxes[0], "cat /sandbox/mine") == f"{boxes[0]}\n"
    for box in [first, *boxes]:
        assert driver.delete(box)


def identity(driver: Driver, box: str) -> list[str]:
    return driver.gateway.shell(box, IDENTITY).split()


def wait_for_waiting(driver: Driver, count: int, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not any(t["waiting"] == count for t in driver.cli("template", "ls")):
        assert time.monotonic() < deadline, driver.log.read_text()[-3000:]
        time.sleep(0.2)


def test_machines_that_wait_are_claimed_refilled_and_never_left_over(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--templates-enabled", "true", "--warm-pool", "2")
    first = driver.create()
    driver.wait(first, "Running")
    wait_for_waiting(driver, 2)
    begun = time.monotonic()
    box = driver.create(wait=False, name="claimed")
    driver.wait(box, "Running")
    print(f"claimed in {time.monotonic() - begun:.2f} s")
    driver.gateway.wait_hello(box)
    assert all(
        a != b
        for a, b in zip(identity(driver, first), identity(driver, box), strict=True)
    )
    wait_for_waiting(driver, 2)
    driver.restart()  # nobody's machines do not outlive their driver
    wait_for_waiting(driver, 2)
    shell = driver.gateway.shell
    shell(box, "echo kept > /sandbox/file")
    driver.operate("suspend", box)
    driver.operate("resume", box)
    assert shell(box, "cat /sandbox/file") == "kept\n"
    driver.operate("snapshot", "create", box, "s")
    driver.operate("snapshot", "restore", box, "s")
    assert shell(box, "cat /sandbox/file") == "kept\n"
    driver.stop(box)
    driver.start_sandbox(box)
    driver.gateway.wait_hello(box, 2)
    for one in (first, box):
        assert driver.delete(one)


@pytest.mark.parametrize("pool", ["0", "1"])
def test_the_driver_is_killed_while_a_fork_begins(
    new_driver: Callable[..., Driver], pool: str
) -> None:
    driver = new_driver("--templates-enabled", "true", "--warm-pool", pool)
    first = driver.create()
    driver.wait(first, "Running")
    wait_for_template(driver)
    for after_s in (0.05, 0.15, 0.25, 0.4, 0.7, 1.0):
        if pool == "1":
            wait_for_waiting(driver, 1)
        box = driver.create(wait=False)
        time.sleep(after_s)
        driver.restart()
        driver.gateway.wait_hello(box)
        driver.wait(box, "Running")
        assert driver.delete(box)
    assert driver.delete(first)


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.4])
def test_qemu_is_killed_while_a_fork_begins(
    new_driver: Callable[..., Driver], after_s: float
) -> None:
    driver = new_driver("--templates-enabled", "true")
    first = driver.create()
    driver.wait(first, "Running")
    wait_for_template(driver)
    box = driver.create(wait=False)
    directory = driver.host.state / "libvirt" / "run" / "qemu"
    theirs = set(directory.glob("*.pid"))
    deadline = time.monotonic() + 20
    while not (new := set(directory.glob("vmdriver-*.pid")) - theirs):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    pid = int(new.pop().read_text())
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    driver.gateway.wait_hello(box)
    driver.wait(box, "Running")
    for one in (first, box):
        assert driver.delete(one)


@pytest.mark.parametrize("pool", ["0", "1"])
def test_a_delete_while_a_fork_begins_leaves_nothing(
    new_driver: Callable[..., Driver], pool: str
) -> None:
    driver = new_driver("--templates-enabled", "true", "--warm-pool", pool)
    first = driver.create()
    driver.wait(first, "Running")
    wait_for_template(driver)
    for after_s in (0.05, 0.2, 0.6):
        if pool == "1":
            wait_for_waiting(driver, 1)
        box = driver.create(wait=False)
        time.sleep(after_s)
        assert driver.delete(box)
        assert not (driver.host.state / "sandboxes" / box).exists()
    assert driver.delete(first)
