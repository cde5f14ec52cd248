"""What libvirt's questions about a CPU cost a machine's start and its restore. Started by scripts/bench.

Two drivers take turns: one whose libvirt need not ask, and one whose does. What is counted is the call of libvirt's that
has the machine, of which nothing else is different; medians of 5 rounds or more.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.printing import table
from tests.bench.process import Process
from tests.bench.sandbox import request, wait_reason
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.hypervisor.questions import verdict
from vmdriver.storage.layout import Layout

OPTIONS = ("--templates-enabled", "false", "--on-stop", "suspend")


def calls_s(driver: Process, what: str) -> list[float]:
    """Seconds of every call of that name, of sandboxes' machines, in the driver's own debug log."""
    found = re.findall(rf"outside: {what} \S+ took ([\d.]+) s", driver.log.read_text())
    return [float(text) for text in found]


@contextlib.contextmanager
def driver_that(
    asks: bool, gateway: Gateway, address: str, instance: str
) -> Iterator[Process]:
    """A driver whose libvirt asks, or does not, on a state directory of its own."""
    state = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    state.chmod(0o755)
    (state / "boot").symlink_to(WORK / "boot")
    results = Layout(state).questions
    more = ("--instance", instance, *OPTIONS)
    try:
        with Process(state, gateway, address, *more):
            deadline = time.monotonic() + 60
            while "qemu" not in verdict.load(results):
                if time.monotonic() > deadline:
                    raise RuntimeError("the driver did not try it")
                time.sleep(0.05)
        found = verdict.load(results)["qemu"]
        if not found.spared:
            sys.exit(f"bench starts: libvirt has to ask here: {found.reason}")
        if asks:
            told = {"spared": False, "reason": "the bench says so"}
            verdict.store(results, "qemu", found.model_copy(update=told))
        with Process(state, gateway, address, *more) as driver:
            yield driver
    finally:
        shutil.rmtree(state, ignore_errors=True)


def round_of(driver: Process, number: int, image: str) -> None:
    """One start and one restore."""
    sandbox, stub = request(number, image), driver.stub
    stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox))
    wait_reason(stub, sandbox.id, "Running")
    stub.StopSandbox(pb.StopSandboxRequest(sandbox_id=sandbox.id))
    stub.StartSandbox(pb.StartSandboxRequest(sandbox_id=sandbox.id))
    wait_reason(stub, sandbox.id, "Running")
    stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=sandbox.id))


def measure(rounds: int, _: object) -> dict[str, Any]:
    """`starts`: milliseconds of both sides, and what one is of the other."""
    gateway, figures = Gateway(), {}
    folder = Path(tempfile.mkdtemp())
    try:
        with (
            registry(folder / "registry") as address,
            contextlib.ExitStack() as stack,
        ):
            push(WORK / "demo-image", "demo", f"{address}/demo:1")
            drivers = [
                stack.enter_context(driver_that(asks, gateway, address, name))
                for asks, name in ((False, "vmdriver-bench"), (True, "vmdriver-asks"))
            ]
            for number in range(rounds + 1):
                for place, driver in enumerate(drivers):
                    round_of(driver, 2 * number + place, f"{address}/demo:1")
            for what in ("start", "load"):
                pair = [statistics.median(calls_s(d, what)[1:]) for d in drivers]
                figures[f"{what}_ms"], figures[f"{what}_asked_ms"] = (
                    pair[0] * 1e3,
                    pair[1] * 1e3,
                )
                figures[f"{what}_ratio"] = pair[0] / pair[1]
    finally:
        gateway.close()
        shutil.rmtree(folder, ignore_errors=True)
    return {"starts": figures}


def show(figures: dict[str, Any]) -> None:
    found = figures["starts"]
    rows = [
        (
            name,
            f"{found[f'{key}_ms']:.0f} ms, {found[f'{key}_asked_ms']:.0f} ms: "
            f"{found[f'{key}_ratio']:.2f}",
        )
        for key, name in (("start", "a machine begun"), ("load", "restored"))
    ]
    table("libvirt's part without questions, and with them", rows)
