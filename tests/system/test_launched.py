"""A driver that a gateway has launched, when that gateway is killed."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

from tests.fakes import serve
from tests.system.machines import BIN, Driver
from vmdriver._proto import compute_driver_pb2 as pb

GATEWAY = ["/bin/sh", "-c", '"$@" --expected-peer-pid $$ & wait', "gateway"]
"""Launches a driver as a gateway does, and can be killed like one."""


def launched(driver: Driver) -> int:
    """Pid of the driver below the gateway's."""
    assert driver.process is not None
    pid = driver.process.pid
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def ends_within(descriptor: int, seconds: float) -> bool:
    """Whether the process of that pidfd ends in time."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def test_a_killed_gateways_driver_ends_and_the_next_gateways_takes_over(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver(command=[*GATEWAY, str(BIN / "openshell-driver-vm")])
    sandbox = driver.create()
    machine, orphan = driver.machine_pid(sandbox), os.pidfd_open(launched(driver))
    driver.kill(signal.SIGKILL)
    assert ends_within(orphan, 2), "it does not outlive its gateway"
    driver.start()
    assert driver.machine_pid(sandbox) == machine, "the machine goes on"
    orphan = os.pidfd_open(launched(driver))
    driver.kill(signal.SIGKILL)
    driver.start()  # at once: the orphan still holds the lock, and may be the one that answers
    assert ends_within(orphan, 5)
    ask = pb.GetCapabilitiesRequest()
    driver.stub.GetCapabilities(ask, wait_for_ready=True, timeout=20)
    driver.wait(sandbox, "Running")
    assert driver.machine_pid(sandbox) == machine
    orphan = os.pidfd_open(launched(driver))
    driver.kill(signal.SIGKILL)
    assert ends_within(orphan, 2)
    driver.command = list(serve.SERVE)
    driver.start()
