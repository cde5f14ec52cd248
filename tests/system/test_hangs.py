"""Real machines that hang: they are stopped and deleted in time, whatever was under way."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc

from tests.fakes.leftovers import leftovers
from tests.system.machines import INSTANCE, Driver
from vmdriver._proto import compute_driver_pb2 as pb

GRACE_S = 2.0


def in_background(call: Callable[[], object]) -> threading.Thread:
    def quietly() -> None:
        with suppress(grpc.RpcError, AssertionError):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    return thread


def deletions(driver: Driver, into: list[str]) -> None:
    for event in driver.stub.WatchSandboxes(pb.WatchSandboxesRequest()):
        if event.WhichOneof("payload") == "deleted":
            into.append(event.deleted.sandbox_id)


def test_a_hung_machine_is_stopped_and_deleted_in_time(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--stop-grace-s", str(GRACE_S), "--on-stop", "suspend")
    box = driver.create()
    driver.wait(box, "Running")
    os.kill(driver.machine_pid(box), signal.SIGSTOP)
    begun = time.monotonic()
    driver.stop(box)
    assert time.monotonic() - begun < GRACE_S + 15, (
        "the suspension was given up in time"
    )
    driver.start_sandbox(box)
    driver.wait(box, "Running")
    pid = driver.machine_pid(box)
    seen: list[str] = []
    in_background(lambda: deletions(driver, seen))
    os.kill(pid, signal.SIGSTOP)
    snapshot = in_background(lambda: driver.operate("snapshot", "create", box, "a"))
    time.sleep(1.5)  # it waits for the guest by now, or for QEMU
    begun = time.monotonic()
    assert driver.delete(box)
    assert time.monotonic() - begun < 30
    assert not Path(f"/proc/{pid}/exe").exists()
    assert leftovers(INSTANCE, driver.host.state) == []
    while box not in seen:
        assert time.monotonic() - begun < 30
        time.sleep(0.05)
    snapshot.join(20)
    assert not snapshot.is_alive(), "whoever asked for it was answered"


def test_a_delete_that_was_promised_is_done_by_the_next_driver(driver: Driver) -> None:
    """The machine hangs when the driver is killed, and still when the next one comes."""
    box = driver.create()
    driver.wait(box, "Running")
    pid = driver.machine_pid(box)
    os.kill(pid, signal.SIGSTOP)
    in_background(lambda: driver.delete(box))
    deadline = time.monotonic() + 10
    while '"intent":"deleted"' not in _record(driver, box):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    begun = time.monotonic()
    driver.restart(signal.SIGKILL)
    while (driver.host.state / "sandboxes" / box).exists():
        assert time.monotonic() - begun < 30
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}/exe").exists()
    assert leftovers(INSTANCE, driver.host.state) == []


def _record(driver: Driver, box: str) -> str:
    path = driver.host.state / "sandboxes" / box / "record.json"
    return path.read_text() if path.exists() else '"intent":"deleted"'
