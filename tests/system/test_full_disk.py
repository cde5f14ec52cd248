"""A real machine whose disk image cannot grow, since the host's file system is full."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Driver, Host

WRITER = """
set -e
head -c 40000000 /dev/urandom >/dev/shm/data
sh -c 'cp /dev/shm/data /sandbox/data && sync && touch /sandbox/written' </dev/null >/dev/null 2>&1 &
"""
COMPARE = """
until [ -e /sandbox/written ]; do sleep 0.2; done
echo 3 >/proc/sys/vm/drop_caches; cmp /dev/shm/data /sandbox/data && echo whole
"""


@pytest.fixture
def small_layers(host: Host) -> Iterator[Path]:
    """A file system of 320 MiB for the sandboxes' disks alone: records and images have room."""
    layers = host.state / "layers"
    layers.mkdir(exist_ok=True)
    before = layers.stat()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320m", "small", layers], check=True
    )
    layers.chmod(before.st_mode & 0o7777)
    os.chown(layers, before.st_uid, before.st_gid)
    yield layers
    subprocess.run(["umount", layers], check=True)


def fill(layers: Path) -> Path:
    """Leave 8 MiB; the file to remove for space."""
    ballast = layers / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(layers).free - 8 * 2**20)
    return ballast


def test_a_machine_that_a_full_disk_has_paused_goes_on_and_can_be_stopped(
    small_layers: Path, new_driver: Callable[..., Driver]
) -> None:
    driver = new_driver()
    box = driver.create()
    driver.wait(box, "Running")
    ballast = fill(small_layers)
    driver.gateway.shell(box, WRITER)
    assert "no space" in driver.wait(box, "DependenciesNotReady")
    pid = driver.machine_pid(box)
    driver.restart()  # the next driver finds it so
    driver.wait(box, "DependenciesNotReady")
    ballast.unlink()
    driver.wait(box, "Running")
    assert driver.machine_pid(box) == pid
    assert driver.gateway.shell(box, COMPARE) == "whole\n", "no write was lost"

    driver.gateway.shell(box, "rm /sandbox/written")
    ballast = fill(small_layers)
    driver.gateway.shell(box, WRITER.replace("sandbox/data", "sandbox/more"))
    driver.wait(box, "DependenciesNotReady")
    begun = time.monotonic()
    driver.stop(box)
    assert time.monotonic() - begun < 10 + 15
    assert driver.condition(box)[1] == "Stopped"
    ballast.unlink()
    driver.start_sandbox(box)
    driver.gateway.wait_hello(box, 2)
