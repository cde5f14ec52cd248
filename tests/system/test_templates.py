"""New sandboxes that go on from a template's memory, on real machines."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from tests.system.machines import Driver

OWN = ["--mem-mib", "496"]
"""A shape whose templates are the test's own, to be built and removed."""


IDENTITY = """
cat /etc/machine-id; cat /sys/class/dmi/id/product_uuid; hostname; cat /proc/sys/kernel/random/boot_id
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '; cat /sys/class/net/eth0/address
ip -4 -o addr show eth0 | awk '{print $4}'
"""


def test_forks_start_without_a_boot_and_share_nothing_that_is_their_own(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver(*OWN)
    (other,) = (template.key for template in driver.templates())
    begun = time.monotonic()
    first = driver.create(name="cold")
    driver.wait(first, "Running")
    cold_s = time.monotonic() - begun
    until(lambda: len(driver.templates()) == 2, lambda: driver.log.read_text(), 60)
    (key,) = (t.key for t in driver.templates() if t.key != other)
    sandboxes, times = [], []
    for number in range(8):
        begun = time.monotonic()
        sandboxes.append(driver.create(name=f"fork-{number}", wait=False))
        driver.wait(sandboxes[-1], "Running")
        times.append(time.monotonic() - begun)
    print(f"cold {cold_s:.2f} s, forks {times}")
    assert min(times) < cold_s / 2
    seen = [
        driver.gateway.wait_hello(b) and identity(driver, b)
        for b in [first, *sandboxes]
    ]
    for column in zip(*seen, strict=True):
        assert len(set(column)) == 9, column
    shell = driver.gateway.shell
    for sandbox in sandboxes[:2]:
        assert shell(sandbox, "cat /sandbox/mine 2>/dev/null || echo none") == "none\n"
        shell(sandbox, f"echo {sandbox} > /sandbox/mine; sync")
    assert driver.plan(sandboxes[0])["template"] == key
    assert {found["key"] for found in driver.cli("template", "ls")} == {key, other}
    driver.operate("template", "rm", key)
    assert {template.key for template in driver.templates()} == {other}
    assert (
        shell(sandboxes[0], "cat /sandbox/mine; ls -R /usr >/dev/null")
        == f"{sandboxes[0]}\n"
    )
    driver.stop(sandboxes[0])
    driver.start_sandbox(sandboxes[0])
    driver.gateway.wait_hello(sandboxes[0], 2)
    assert shell(sandboxes[0], "cat /sandbox/mine") == f"{sandboxes[0]}\n"
    for sandbox in [first, *sandboxes]:
        assert driver.delete(sandbox)


def identity(driver: Driver, sandbox: str) -> list[str]:
    return driver.gateway.shell(sandbox, IDENTITY).split()


def wait_for_waiting(driver: Driver, count: int, timeout_s: float = 90) -> None:
    until(
        lambda: any(template.waiting == count for template in driver.templates()),
        lambda: driver.log.read_text()[-3000:],
        timeout_s,
    )


def test_machines_that_wait_are_claimed_refilled_and_never_left_over(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--warm-pool", "2")
    first = driver.create()
    driver.wait(first, "Running")
    wait_for_waiting(driver, 2)
    begun = time.monotonic()
    sandbox = driver.create(wait=False, name="claimed")
    driver.wait(sandbox, "Running")
    print(f"claimed in {time.monotonic() - begun:.2f} s")
    driver.gateway.wait_hello(sandbox)
    assert all(
        a != b
        for a, b in zip(identity(driver, first), identity(driver, sandbox), strict=True)
    )
    wait_for_waiting(driver, 2)
    driver.restart()  # unowned machines do not outlive their driver
    wait_for_waiting(driver, 2)
    shell = driver.gateway.shell
    shell(sandbox, "echo kept > /sandbox/file")
    driver.suspend(sandbox)
    driver.resume(sandbox)
    assert shell(sandbox, "cat /sandbox/file") == "kept\n"
    driver.snapshot(sandbox, "s")
    driver.go_back(sandbox, "s")
    assert shell(sandbox, "cat /sandbox/file") == "kept\n"
    driver.stop(sandbox)
    driver.start_sandbox(sandbox)
    driver.gateway.wait_hello(sandbox, 2)
    for one in (first, sandbox):
        assert driver.delete(one)


def test_a_machine_that_is_killed_while_it_waits_is_replaced(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--warm-pool", "1")
    first = driver.create()
    driver.wait(first, "Running")
    wait_for_waiting(driver, 1)
    assert driver.delete(first)
    directory = driver.host.state / "libvirt" / "run" / "qemu"

    def waiting() -> list[str]:
        return [path.read_text() for path in directory.glob("vmdriver-*.pid")]

    until(lambda: len(waiting()) == 1, lambda: str(waiting()))
    killed = waiting()
    os.kill(int(killed[0]), signal.SIGKILL)
    until(
        lambda: "".join(waiting()) not in {"", *killed},
        lambda: driver.log.read_text()[-3000:],
        60,
    )
    wait_for_waiting(driver, 1)
    assert "has ended by itself, and is replaced" in driver.log.read_text()
    sandbox = driver.create()
    assert "TemplateFailed" not in driver.log.read_text()
    assert driver.delete(sandbox)


@pytest.mark.parametrize("pool", [0, 3])
def test_the_driver_is_killed_while_forks_begin(
    new_driver: Callable[..., Driver], pool: int
) -> None:
    """Each is another way on by then: the first was asked for a second, or most of one, before."""
    driver = new_driver("--warm-pool", str(pool))
    for pauses_s in ((0.6, 0.25, 0.15), (0.45, 0.2, 0.05)):
        if pool:
            wait_for_waiting(driver, pool)
        sandboxes = []
        for pause_s in pauses_s:
            sandboxes.append(driver.create(wait=False))
            time.sleep(pause_s)
        driver.restart()
        for sandbox in sandboxes:
            driver.gateway.wait_hello(sandbox)
            driver.wait(sandbox, "Running")
            assert driver.delete(sandbox)


def test_qemu_is_killed_while_a_fork_begins(driver: Driver) -> None:
    directory = driver.host.state / "libvirt" / "run" / "qemu"
    for after_s in (0.0, 0.1, 0.2):  # it is up some 0.35 s later
        theirs = set(directory.glob("*.pid"))
        sandbox = driver.create(wait=False)

        def written(theirs: set[Path] = theirs) -> list[str]:
            new = set(directory.glob("vmdriver-*.pid")) - theirs
            return [text for path in new if (text := path.read_text())]

        until(written, pause_s=0.001)  # it is made first, then written to
        pid = int(written()[0])
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
        driver.gateway.wait_hello(sandbox)
        driver.wait(sandbox, "Running")
        assert driver.delete(sandbox)


@pytest.mark.parametrize("pool", ["0", "1"])
def test_a_delete_while_a_fork_begins_leaves_nothing(
    new_driver: Callable[..., Driver], pool: str
) -> None:
    driver = new_driver("--warm-pool", pool)
    for after_s in (0.05, 0.2, 0.6):
        if pool == "1":
            wait_for_waiting(driver, 1)
        sandbox = driver.create(wait=False)
        time.sleep(after_s)
        assert driver.delete(sandbox)
        assert not driver.directory(sandbox).exists()
