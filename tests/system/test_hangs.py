"""Real machines that hang: they are stopped and deleted in time, whatever was under way."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.fakes.leftovers import leftovers
from tests.fakes.waiting import until
from tests.system.machines import INSTANCE, Driver, in_background
from tests.system.workloads import suspending
from vmdriver._proto import compute_driver_pb2 as pb

GRACE_S = 2.0


def deletions(driver: Driver, into: list[str]) -> None:
    for event in driver.stub.WatchSandboxes(pb.WatchSandboxesRequest()):
        if event.WhichOneof("payload") == "deleted":
            into.append(event.deleted.sandbox_id)


def seconds_of_its_stop(driver: Driver, sandbox: str) -> float:
    begun = time.monotonic()
    driver.stop(sandbox)
    return time.monotonic() - begun


def test_a_hung_machine_is_stopped_and_deleted_in_time(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--stop-grace-s", str(GRACE_S))
    plain, sandbox = driver.create(), suspending(driver)
    driver.wait(plain, "Running")
    for one in (plain, sandbox):
        os.kill(driver.machine_pid(one), signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        took = list(pool.map(partial(seconds_of_its_stop, driver), (plain, sandbox)))
    # Grace for the flush, then libvirt's own: SIGTERM, and SIGKILL 10 s later.
    assert max(took) < GRACE_S + 15, "the suspension was given up in time, too"
    assert driver.condition(plain)[1] == "Stopped"
    assert driver.delete(plain)
    driver.start_sandbox(sandbox)
    driver.wait(sandbox, "Running")
    pid = driver.machine_pid(sandbox)
    seen: list[str] = []
    in_background(lambda: deletions(driver, seen))
    os.kill(pid, signal.SIGSTOP)
    snapshot = in_background(lambda: driver.snapshot(sandbox, "a"))
    time.sleep(1)  # it waits for the guest by now, or for QEMU
    begun = time.monotonic()
    assert driver.delete(sandbox)
    assert time.monotonic() - begun < 30
    assert not Path(f"/proc/{pid}/exe").exists()
    assert leftovers(INSTANCE, driver.host.state) == []
    until(lambda: sandbox in seen, limit_s=30 + begun - time.monotonic())
    snapshot.join(20)
    assert not snapshot.is_alive(), "whoever asked for it was answered"


def test_a_delete_that_was_promised_is_done_by_the_next_driver(driver: Driver) -> None:
    """The machine hangs when the driver is killed, and still when the next one comes."""
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    pid = driver.machine_pid(sandbox)
    os.kill(pid, signal.SIGSTOP)
    in_background(lambda: driver.delete(sandbox))
    until(lambda: '"intent":"deleted"' in _record(driver, sandbox), pause_s=0.02)
    begun = time.monotonic()
    driver.restart(signal.SIGKILL)
    until(
        lambda: not driver.directory(sandbox).exists(),
        limit_s=30 + begun - time.monotonic(),
    )
    assert not Path(f"/proc/{pid}/exe").exists()
    assert leftovers(INSTANCE, driver.host.state) == []


def _record(driver: Driver, sandbox: str) -> str:
    path = driver.directory(sandbox) / "record.json"
    return path.read_text() if path.exists() else '"intent":"deleted"'
