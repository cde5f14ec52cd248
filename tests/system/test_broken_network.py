"""Somebody empties a machine's own rules again and again: it stands still and is shown so, and whatever is asked of it then
is done.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from tests.fakes.waiting import until
from tests.system.machines import Driver

RULES = "nft", "list", "tables"


def inside(tap: str, *command: str) -> str:
    """ "" where there is no such namespace."""
    within = ["nsenter", f"--net=/run/netns/{tap}", *command]
    return subprocess.run(within, capture_output=True, text=True, check=False).stdout


def tap_of(driver: Driver, sandbox: str) -> str:
    tap: str = driver.inspect(sandbox)["addresses"]["tap"]
    return tap


@contextmanager
def broken(driver: Driver, sandbox: str) -> Iterator[None]:
    """Inside, its network does not stay whole, and it stands still."""
    ended, tap = threading.Event(), tap_of(driver, sandbox)

    def empty_it() -> None:
        while not ended.wait(0.02):
            inside(tap, "nft", "flush", "ruleset")

    vandal = threading.Thread(target=empty_it)
    vandal.start()
    try:
        driver.wait(sandbox, "DependenciesNotReady", 20)
        until(lambda: stands_still(driver, sandbox), "it runs on", 5)
        yield
    finally:
        ended.set()
        vandal.join()


def ticks(driver: Driver, sandbox: str) -> int:
    """What its QEMU has worked so far."""
    with open(f"/proc/{driver.machine_pid(sandbox)}/stat") as stat:
        words = stat.read().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def stands_still(driver: Driver, sandbox: str) -> bool:
    """A guest that runs has its clock ticking; what stands still is busy with nothing."""
    before, pause = ticks(driver, sandbox), threading.Event()
    pause.wait(0.5)
    return ticks(driver, sandbox) - before <= 1 and bool(
        driver.record(sandbox)["network_broken"]
    )


def is_whole(driver: Driver, sandbox: str) -> None:
    """It runs, with rules inside, and reaches the gateway."""
    driver.wait(sandbox, "Running")
    until(lambda: not driver.record(sandbox)["network_broken"], "still shown", 5)
    assert inside(tap_of(driver, sandbox), *RULES).count("table") >= 2
    assert driver.gateway.shell(sandbox, "echo here") == "here\n"


def test_a_machine_whose_network_does_not_stay_whole_stands_still_and_obeys(
    driver: Driver,
) -> None:
    sandbox = driver.create()
    is_whole(driver, sandbox)
    with broken(driver, sandbox):
        driver.stop(sandbox)
    driver.start_sandbox(sandbox)
    driver.gateway.wait_hello(sandbox, 2)
    is_whole(driver, sandbox)
    with broken(driver, sandbox):
        driver.restart()
        driver.wait(sandbox, "DependenciesNotReady", 20)
        until(lambda: stands_still(driver, sandbox), "it runs on", 20)
    is_whole(driver, sandbox)
    with broken(driver, sandbox):
        with pytest.raises(grpc.RpcError, match="stands still"):
            driver.suspend(sandbox)
        driver.delete(sandbox)
