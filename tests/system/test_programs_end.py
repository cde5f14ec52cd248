"""What a driver has begun ends with it: helper programs, and the QEMUs that libvirt asks what they can do. No guest is booted."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.fakes import waiting
from tests.system.machines import Driver


def commands(*words: str) -> list[str]:
    """Command lines that hold all of these."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ")
            text = line.decode(errors="replace")
            if all(word in text for word in words):
                found.append(text)
    return found


until = partial(waiting.until, pause_s=0.002)
"""A process may live for milliseconds."""


@pytest.fixture
def deaf_registry() -> Iterator[str]:
    """Accepts connections and never answers."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_images_fetch_ends_with_the_driver(
    new_driver: Callable[..., Driver], deaf_registry: str, number: signal.Signals
) -> None:
    options = ["--insecure-registries", deaf_registry]
    driver = new_driver(*options, "--default-image", f"{deaf_registry}/x:1")
    until(lambda: commands("skopeo", deaf_registry), "nothing is fetched", 30)
    driver.kill(number)
    until(lambda: not commands("skopeo", deaf_registry), "skopeo goes on", 10)


@pytest.mark.parametrize("rounds", [2, pytest.param(10, marks=pytest.mark.soak)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_libvirts_probes_end_with_the_driver(
    new_driver: Callable[..., Driver], number: signal.Signals, rounds: int
) -> None:
    driver = new_driver()
    driver.kill(signal.SIGTERM)
    cache = driver.host.state / "libvirt" / "cache"
    # Else libvirt knows already; a driver that answers need not have asked it yet.
    shutil.rmtree(cache, ignore_errors=True)
    probe = ("qemu-system", "-machine none", "qmp.monitor")
    for _ in range(rounds):
        driver.begin()  # it may have asked by the time that it answers
        until(lambda: commands(*probe), "there was no probe", 30)
        driver.kill(number)
        until(lambda: not commands(*probe), "a probe goes on", 10)
        shutil.rmtree(cache, ignore_errors=True)
