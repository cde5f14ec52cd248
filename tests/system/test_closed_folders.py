"""A state directory that QEMU's user cannot walk to: as a gateway makes it, below a home folder."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.gateway import Gateway
from tests.fakes.leftovers import leftovers
from tests.fakes.serve import BIN, WORK
from tests.system.machines import INSTANCE, Driver, Host
from tests.system.stage import WITHOUT_TEMPLATES, lend_images


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that only its owner may pass."""
    base = Path(tempfile.mkdtemp(prefix="vmdriver-closed-"))
    base.chmod(0o755)
    (base / "home").mkdir(mode=0o700)
    yield base / "home"
    shutil.rmtree(base)


def test_machines_live_below_folders_that_are_closed_to_qemus_user(
    new_driver: Callable[..., Driver], shared: Driver, home: Path
) -> None:
    state, boot = home / "state", home / "checkout" / "boot"
    shutil.copytree(WORK / "boot", boot, symlinks=True)
    state.mkdir(mode=0o700)
    (state / "boot").symlink_to(boot)
    lend_images(shared.host.state, state)
    driver = new_driver(*WITHOUT_TEMPLATES, state=state)
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    driver.gateway.shell(sandbox, "echo one > /dev/shm/note")
    machine = driver.machine_pid(sandbox)
    driver.snapshot(sandbox, "first")
    driver.restart()
    assert driver.machine_pid(sandbox) == machine, "adopted"
    driver.gateway.shell(sandbox, "echo two > /dev/shm/note")
    home.chmod(0o711)  # the way is open now; the machine knows its files by another one
    driver.restart()
    assert driver.machine_pid(sandbox) == machine
    driver.suspend(sandbox)
    driver.resume(sandbox)
    assert driver.gateway.shell(sandbox, "cat /dev/shm/note") == "two\n"
    driver.suspend(sandbox)
    came_in = driver.log.read_text().count(f"QEMU comes to {state} through")
    assert came_in == 3
    driver.restart()
    again = driver.log.read_text().count(f"QEMU comes to {state} through")
    assert again == came_in, "nothing runs any more: it walks"
    driver.go_back(sandbox, "first")
    assert driver.gateway.shell(sandbox, "cat /dev/shm/note") == "one\n"
    driver.suspend(sandbox)
    home.chmod(0o700)
    driver.restart()
    driver.resume(sandbox)
    assert driver.gateway.shell(sandbox, "cat /dev/shm/note") == "one\n"
    assert driver.delete(sandbox)
    assert home.stat().st_mode & 0o777 == 0o700, "not ours to open"
    driver.kill(signal.SIGTERM)
    assert leftovers(INSTANCE, state) == []
    mounts = Path("/proc/self/mounts").read_text()
    assert "/run/vmd-qemu" not in mounts, "nobody else sees them"
    shutil.rmtree(state)


def test_where_nothing_can_be_mounted_one_line_says_what_is_in_the_way(
    host: Host, gateway: Gateway, home: Path
) -> None:
    driver = Driver(
        replace(host, state=home / "state"), gateway, home / "run" / "s", []
    )
    arguments = driver.arguments()
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    for command in (without, []):
        more = [] if command else ["--connection", "qemu:///system"]
        done = subprocess.run(
            [*command, str(BIN / "vmdriver"), "serve", *arguments, *more],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 2
        said = [line for line in done.stderr.splitlines() if "state_dir" in line]
        assert len(said) == 1
        assert f"because {home} is closed to it: chmod o+x {home}" in said[0]
