"""A real machine whose disk image cannot grow, since the host's file system is full."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from tests.system.machines import Driver, Host
from tests.system.stage import WITHOUT_TEMPLATES
from tests.system.workloads import check_whole, marked

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
def small(fresh_host: Host, tmp_path: Path) -> Iterator[Path]:
    """A file system of 320 MiB for sandboxes alone, disks and records; images have room."""
    root = tmp_path / "small"
    root.mkdir()
    mount("-t", "tmpfs", "-o", "size=320m", "small", root)
    places = [fresh_host.state / "layers", fresh_host.state / "sandboxes"]
    for place in places:
        place.mkdir(mode=0o711, exist_ok=True)
        (root / place.name).mkdir()
        shutil.copystat(place, root / place.name)
        mount("--bind", root / place.name, place)
    yield root
    for place in [*places, root]:
        subprocess.run(["umount", place], check=True)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def fill(root: Path, left: int = 8 * 2**20) -> None:
    """Leave that many bytes free, or none."""
    with (root / "ballast").open("ab", buffering=0) as file:
        size = file.tell() + max(0, shutil.disk_usage(root).free - left)
        os.posix_fallocate(file.fileno(), 0, size)
        with contextlib.suppress(OSError):
            while not left:
                file.write(b"x" * 4096)


def test_a_machine_that_a_full_disk_has_paused_goes_on_and_can_be_stopped(
    small: Path, fresh_host: Host, new_driver: Callable[..., Driver]
) -> None:
    driver = new_driver(*WITHOUT_TEMPLATES, host=fresh_host)
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    fill(small)
    driver.gateway.shell(sandbox, WRITER)
    assert "no space" in driver.wait(sandbox, "DependenciesNotReady")
    pid = driver.machine_pid(sandbox)
    driver.restart()  # the next driver finds it so
    driver.wait(sandbox, "DependenciesNotReady")
    (small / "ballast").unlink()
    driver.wait(sandbox, "Running")
    assert driver.machine_pid(sandbox) == pid
    assert driver.gateway.shell(sandbox, COMPARE) == "whole\n", "no write was lost"

    driver.gateway.shell(sandbox, "rm /sandbox/written")
    fill(small)
    driver.gateway.shell(sandbox, WRITER.replace("sandbox/data", "sandbox/more"))
    driver.wait(sandbox, "DependenciesNotReady")
    fill(small, left=0)
    begun = time.monotonic()
    driver.stop(sandbox)
    assert time.monotonic() - begun < 10 + 15
    assert driver.condition(sandbox)[1] == "Stopped"
    (small / "ballast").unlink()
    driver.start_sandbox(sandbox)
    driver.gateway.wait_hello(sandbox, 2)


@pytest.fixture
def libvirts_disk(resting: Host) -> Iterator[Path]:
    """A file system of 24 MiB for libvirt's own files alone."""
    root = resting.state / "libvirt"
    root.mkdir(mode=0o711, exist_ok=True)
    mount("-t", "tmpfs", "-o", "size=24m,mode=711", "small", root)
    yield root
    subprocess.run(["umount", root], check=True)


def test_a_driver_that_starts_on_a_full_disk_leaves_machines_alone(
    libvirts_disk: Path, new_driver: Callable[..., Driver]
) -> None:
    """libvirt ends those whose status it cannot write."""
    driver = new_driver()
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    pid = driver.machine_pid(sandbox)
    driver.kill()
    fill(libvirts_disk, left=0)
    driver.start()
    until(
        lambda: "libvirt would end the machines" in driver.log.read_text(),
        lambda: driver.log.read_text()[-3000:],
    )
    (libvirts_disk / "ballast").unlink()
    driver.wait(sandbox, "Running")
    assert driver.machine_pid(sandbox) == pid
    assert driver.gateway.shell(sandbox, "echo here") == "here\n"


def test_memory_that_libvirt_has_no_room_to_restore_is_not_given_up(
    libvirts_disk: Path, new_driver: Callable[..., Driver]
) -> None:
    driver = new_driver()
    sandbox = marked(driver)
    driver.stop(sandbox)
    fill(libvirts_disk, left=0)
    driver.start_sandbox(sandbox)
    until(
        lambda: driver.log.read_text().count("step machine failed") >= 4,
        lambda: driver.condition(sandbox),
        limit_s=60,
    )
    (libvirts_disk / "ballast").unlink()
    check_whole(driver, sandbox)
