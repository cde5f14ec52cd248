"""The host restarts, or a machine's process number is another program's by now."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import serve
from tests.system.machines import Driver
from vmdriver.network.rules.shared_rules import table_name


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Some other program of this host."""
    with subprocess.Popen(["sleep", "infinity"]) as process:
        yield process
        process.kill()


def lose_the_machine(driver: Driver, sandbox_id: str, now: int) -> None:
    """Driver and QEMU are gone, and the number of QEMU's process is another's now."""
    pid = driver.machine_pid(sandbox_id)
    driver.kill(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    domain = driver.plan(sandbox_id)["domain"]
    states = driver.host.state / "libvirt" / "run" / "qemu"
    status = states / f"{domain}.xml"
    text = status.read_text()
    assert f"pid='{pid}'" in text
    status.write_text(text.replace(f"pid='{pid}'", f"pid='{now}'"))
    (states / f"{domain}.pid").write_text(str(now))


def restart_the_host(driver: Driver, sandbox_id: str, directory: Path) -> None:
    """What a reboot takes of this sandbox, as far as one host can play it: tap, namespace, table, boot id."""
    boot_id = directory / "boot_id"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    plan = driver.plan(sandbox_id)
    tap = plan["network"]["lease"]["tap"]
    subprocess.run(["ip", "link", "del", tap], check=True)
    subprocess.run(["ip", "netns", "del", tap], check=True)
    subprocess.run(["nft", "delete", "table", "inet", table_name(tap)], check=True)
    mount = f"mount --bind {boot_id} /proc/sys/kernel/random/boot_id"
    driver.command = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    driver.command += serve.SERVE


def test_whoever_has_a_machines_number_now_is_left_alone(
    driver: Driver, bystander: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    sandbox = driver.create()
    lose_the_machine(driver, sandbox, bystander.pid)
    restart_the_host(driver, sandbox, tmp_path)
    driver.start()
    driver.gateway.wait_hello(sandbox, 2)
    driver.wait(sandbox, "Running")
    assert bystander.poll() is None
    assert "HostRebooted" in driver.log.read_text()
    assert driver.record(sandbox)["launches"] == 2

    lose_the_machine(driver, sandbox, bystander.pid)  # and the host goes on
    driver.start()
    driver.wait(sandbox, "MachineCrashed")
    assert bystander.poll() is None
    assert driver.delete(sandbox)
