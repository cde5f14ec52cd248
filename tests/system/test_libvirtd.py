"""The same against a libvirtd of the test's own, over qemu:///system."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Driver


@pytest.fixture
def libvirtd() -> Iterator[None]:
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
        yield
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
    libvirtd: None, new_driver: Callable[..., Driver]
) -> None:
    driver = new_driver("--connection", "qemu:///system")
    box = driver.create()
    driver.wait(box, "Running")
    driver.gateway.shell(box, "echo kept > /sandbox/f")
    driver.restart()
    assert driver.condition(box)[1] == "Running"
    driver.stop(box)
    driver.start_sandbox(box)
    driver.gateway.wait_hello(box, 2)
    assert driver.gateway.shell(box, "cat /sandbox/f") == "kept\n"
    driver.gateway.shell(box, "echo kept > /dev/shm/note")
    driver.operate("suspend", box)
    driver.operate("resume", box)
    assert driver.gateway.shell(box, "cat /dev/shm/note") == "kept\n"
    assert driver.delete(box)
