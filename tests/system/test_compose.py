"""A composed driver in front of our own, with real machines."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc

from tests.fakes.composed import holding
from tests.fakes.eager import EAGER
from tests.fakes.waiting import until
from tests.system.machines import Driver
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

ROOT = Path(__file__).resolve().parents[2]


class InFront:
    """A composed driver's process, and a client of it."""

    def __init__(self, base: Path, directory: Path) -> None:
        self.socket, self.state = directory / "c" / "c.sock", directory / "s"
        program = [sys.executable, "-m", "tests.fakes.composed"]
        command = [*program, str(base), str(self.socket), str(self.state), "0"]
        self.process = subprocess.Popen(command, cwd=ROOT)
        self.channel = grpc.insecure_channel(f"unix:{self.socket}", options=EAGER)
        self.stub: Any = pb_grpc.ComputeDriverStub(self.channel)
        found = self.stub.GetCapabilities(
            pb.GetCapabilitiesRequest(), wait_for_ready=True, timeout=20
        )
        assert found.driver_name.endswith("+vmdriver")

    def end(self, number: int = signal.SIGTERM) -> None:
        self.channel.close()
        self.process.send_signal(number)
        self.process.wait(10)


def runs(driver: Driver, sandbox: str) -> bool:
    """False also while whoever is in front has no connection to it yet."""
    with contextlib.suppress(grpc.RpcError):
        return driver.condition(sandbox)[1] == "Running"
    return False


def test_a_machine_lives_through_a_composed_driver_and_outlives_it(
    driver: Driver, tmp_path: Path
) -> None:
    direct, front = driver.stub, InFront(driver.socket, tmp_path)
    world = front.state / "world"
    try:
        driver.stub = front.stub
        sandbox = driver.create()
        driver.wait(sandbox, "Running")
        assert driver.gateway.shell(sandbox, "echo through").strip() == "through"
        assert holding(world) == {"first", "second", "run"}
        pid = driver.machine_pid(sandbox)
        front.end(signal.SIGKILL)
        front = InFront(driver.socket, tmp_path)
        driver.stub = front.stub
        assert driver.machine_pid(sandbox) == pid, "the machine went on"
        assert driver.gateway.shell(sandbox, "echo still").strip() == "still"
        driver.stop(sandbox)
        assert holding(world) == {"first", "second"}
        driver.start_sandbox(sandbox)
        driver.gateway.wait_hello(sandbox, 2)
        assert holding(world) == {"first", "second", "run"}
        driver.kill()
        driver.start()  # the driver behind ends; the machine and what is held stay
        direct, driver.stub = driver.stub, front.stub
        until(lambda: runs(driver, sandbox), "it is not reached again")
        assert driver.delete(sandbox)
        until(lambda: not list((front.state / "sandboxes").iterdir()))
        assert holding(world) == set()
        driver.used.clear()
    finally:
        driver.stub = direct
        front.end()
