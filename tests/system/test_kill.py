"""SIGKILL the driver at awkward moments; the next one adopts or finishes, and nothing is left over."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.serve import BIN
from tests.fakes.waiting import until
from tests.system.disks import run, whole
from tests.system.machines import Driver, in_background, is_asked, qemus_of
from vmdriver._proto import compute_driver_pb2 as pb

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /sandbox/counter; sleep 0.1; done"


def test_killed_while_running_the_machine_goes_on_and_is_adopted(
    driver: Driver,
) -> None:
    sandbox = driver.create(command=["/bin/sh", "-c", COUNTER])
    driver.wait(sandbox, "Running")
    pid = driver.machine_pid(sandbox)
    before = int(driver.gateway.shell(sandbox, "cat /sandbox/counter"))
    driver.restart()
    assert driver.condition(sandbox)[1] == "Running"
    assert driver.machine_pid(sandbox) == pid
    time.sleep(0.5)
    assert int(driver.gateway.shell(sandbox, "cat /sandbox/counter")) > before
    assert len(driver.gateway.session(sandbox).hellos) == 1, (
        "the supervisor never noticed"
    )
    driver.stop(sandbox)
    assert driver.delete(sandbox)


def test_killed_during_create_the_next_driver_finishes(booting: Driver) -> None:
    """Each sandbox has come another way by then: the first has booted, the last has hardly been asked for."""
    driver, sandboxes = booting, []
    for wait_s in (2.0, 0.5, 0.45, 0.05):
        sandboxes.append(driver.create(wait=False))
        time.sleep(wait_s)
    driver.restart()
    for sandbox in sandboxes:
        driver.gateway.wait_hello(sandbox)
        driver.wait(sandbox, "Running")
    for sandbox in sandboxes:
        assert driver.delete(sandbox)


def test_killed_during_stop_the_next_driver_finishes(
    driver: Driver, tmp_path: Path
) -> None:
    """The same of stops, of sandboxes that run."""
    sandboxes = [driver.create() for _ in range(3)]
    for sandbox in sandboxes:
        driver.wait(sandbox, "Running")
        driver.gateway.shell(sandbox, "echo kept > /sandbox/f; sync")
    for sandbox, wait_s in zip(sandboxes, (0.15, 0.14, 0.01), strict=True):
        in_background(partial(driver.stop, sandbox))
        until(partial(is_asked, driver, sandbox, "stopped"), pause_s=0.002)
        time.sleep(wait_s)
    driver.restart()
    for sandbox in sandboxes:
        driver.wait(sandbox, "Stopped")
        disk = whole(driver.record(sandbox)["layers"][-1], tmp_path / "disk")
        assert run("debugfs", "-R", "cat /sandbox/f", disk) == "kept\n"
    driver.start_sandbox(sandboxes[0])
    driver.gateway.wait_hello(sandboxes[0], 2)
    assert driver.gateway.shell(sandboxes[0], "cat /sandbox/f") == "kept\n"


def test_killed_during_delete_the_next_driver_finishes(driver: Driver) -> None:
    sandboxes = [driver.create() for _ in range(3)]
    for sandbox in sandboxes:
        driver.wait(sandbox, "Running")
    for sandbox, wait_s in zip(sandboxes, (0.15, 0.09, 0.01), strict=True):
        in_background(partial(driver.delete, sandbox))
        until(partial(is_asked, driver, sandbox, "deleted"), pause_s=0.002)
        time.sleep(wait_s)
    driver.restart()
    ask = pb.ListSandboxesRequest()
    until(lambda: not driver.stub.ListSandboxes(ask).sandboxes)


def test_launched_by_a_gateway_it_answers_soon_ends_soon_and_leaves_machines(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver(
        *(
            "--expected-peer-pid",
            str(os.getpid()),
            "--log-level",
            "info",
            "--otlp-endpoint",
            "http://127.0.0.1:4317",
        ),
        *(
            "--default-image",
            "example.org/x:1",
            "--bootstrap-image",
            "example.org/b:1",
            "--krun-log-level",
            "1",
        ),
        "--allow-same-uid-peer",
        command=[str(BIN / "openshell-driver-vm")],
    )
    driver.kill(signal.SIGTERM)
    begun = time.monotonic()
    driver.start()
    assert time.monotonic() - begun < 3, "GetCapabilities within 3 s of the spawn"
    assert (
        driver.stub.GetCapabilities(pb.GetCapabilitiesRequest()).default_image
        == "example.org/x:1"
    )
    said = driver.log.read_text()
    assert "bootstrap_image" in said, "what has no meaning is said"
    assert "metrics and traces are sent to" in said, "though nobody listens there"
    sandbox = driver.create()
    pid = driver.machine_pid(sandbox)
    assert driver.kill(signal.SIGTERM) < 3
    assert driver.process.returncode == 0
    os.kill(pid, 0)
    driver.start()
    assert driver.machine_pid(sandbox) == pid


def test_a_watching_gateway_does_not_hold_the_end_up(driver: Driver) -> None:
    watch = driver.stub.WatchSandboxes(pb.WatchSandboxesRequest())
    in_background(lambda: list(watch))
    time.sleep(0.3)
    assert driver.kill(signal.SIGTERM) < 3


def test_told_to_end_while_a_machine_hangs_the_driver_ends_soon(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    os.kill(driver.machine_pid(sandbox), signal.SIGSTOP)
    in_background(lambda: driver.stop(sandbox))
    time.sleep(1)
    assert driver.kill(signal.SIGTERM) < 3
    driver.start()
    driver.wait(sandbox, "Stopped")


def test_a_second_driver_on_the_same_state_is_refused(driver: Driver) -> None:
    arguments = driver.arguments()
    arguments[arguments.index("--bind-socket") + 1] += "2"
    done = subprocess.run(
        [str(BIN / "vmdriver"), "serve", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "another driver works on" in done.stderr


@pytest.mark.parametrize("after_s", [0.0, 1.5])
def test_a_qemu_that_is_killed_during_its_launch_is_tried_once_more(
    booting: Driver, after_s: float
) -> None:
    """Just started, while libvirt still talks to it, or while its guest boots."""
    driver = booting
    sandbox = driver.create(wait=False)
    until(lambda: qemus_of(driver, sandbox), "no QEMU", pause_s=0)
    found = qemus_of(driver, sandbox)
    time.sleep(after_s)
    os.kill(found[0], signal.SIGKILL)
    driver.gateway.wait_hello(sandbox)
    driver.wait(sandbox, "Running")
    assert qemus_of(driver, sandbox) != found
    assert driver.log.read_text().count("LaunchCutOff") == 1
