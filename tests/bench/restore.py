"""Measures suspend, resume, snapshots, forks against plain libvirt and QEMU doing the same, in one run. Started by scripts/bench restore.

Every figure is a median of at least 5 rounds. The two sides take turns on the same files, with the same domain XML.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench.plain import Plain, tap
from tests.bench.printing import median, table
from tests.bench.process import Process
from tests.bench.sandbox import Sandbox, request_of, wait_reason, wait_template
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from vmdriver._proto import compute_driver_pb2 as pb

SHAPES = "256:64,1024:64,4096:64,4096:1024"


def shape(
    driver: Process, gateway: Gateway, image: str, ram: int, touched: int, rounds: int
) -> dict[str, Any]:
    sandbox = Sandbox(
        driver, gateway, request_of(f"m{ram}-{touched}", image, ram, touched)
    )
    gateway.wait_hello(sandbox.id)
    gateway.shell(
        sandbox.id, "while [ ! -e /tmp/touched ]; do sleep 0.1; done", timeout_s=300
    )
    result: dict[str, list[float]] = defaultdict(list)
    result["still_booted"] = [
        sandbox.snapshot(f"booted{n}") for n in range(rounds + 1)
    ][1:]
    steps: list[dict[str, float]] = []
    stored = 0
    for number in range(rounds + 1):
        suspend_s = sandbox.suspend()
        if number == 0:
            plain = Plain(sandbox)
        stored = sandbox.record()["memory"]["stored_bytes"]
        written_s, write_s, plain_size = plain.write()
        save_s = plain.save()
        restore_s = plain.restore()
        resume_s = sandbox.start()
        if number == 0:
            continue  # caches are filled by the first
        for key, value in (
            ("suspend", suspend_s),
            ("resume", resume_s),
            ("write", write_s),
            ("save", save_s),
            ("restore", restore_s),
            ("size", stored / plain_size),
            ("still", sandbox.snapshot(f"s{number}")),
            ("written", written_s),
        ):
            result[key].append(value)
        steps.append(sandbox.record()["last_restore"])
    plain.end()
    sandbox.delete()
    found: dict[str, Any] = {key: median(values) for key, values in result.items()}
    found["cold"] = sandbox.create_s
    found["stored_mib"] = stored / 2**20
    found["steps"] = {k: median([s[k] for s in steps]) for k in steps[0]}
    return found


def show_shapes(shapes: dict[str, dict[str, Any]]) -> None:
    rows = []
    for name, v in shapes.items():
        rows.append(
            (
                name,
                f"suspend {v['suspend']:.2f} s = {v['suspend'] / v['write']:.2f} x QEMU's write, {v['suspend'] / v['save']:.2f} x virsh save; "
                f"resume {v['resume']:.2f} s = {v['resume'] / v['cold']:.2f} x cold boot, {v['resume'] / v['restore']:.2f} x virsh restore; "
                f"snapshot stands still {v['still_booted']:.2f} s = {v['still_booted'] / v['written']:.2f} x QEMU's write, "
                f"after a resume {v['still']:.2f} s = {v['still'] / v['written']:.2f} x; "
                f"stored {v['stored_mib']:.0f} MiB = {v['size']:.2f} x QEMU's file",
            )
        )
    table("RAM / touched by the workload", rows)
    first = next(iter(shapes.values()))["steps"]
    total = sum(first.values())
    print("\nWhere a resume's time goes")
    for step, seconds in first.items():
        print(
            f"  {step.ljust(20)} {seconds * 1e3:7.0f} ms  {'#' * round(60 * seconds / total)}"
        )


def show_forks(found: dict[str, float]) -> None:
    cold = found["cold_s"]
    table(
        "A new sandbox, CreateSandbox -> supervisor started (512 MiB)",
        [
            ("cold", f"{cold:.2f} s"),
            (
                "from a template",
                f"{found['fork_s']:.2f} s = {found['fork_s'] / cold:.2f}",
            ),
            (
                "from the warm pool",
                f"{found['warm_s']:.2f} s = {found['warm_s'] / cold:.2f}",
            ),
            (
                "8 forks at once",
                f"{found['eight_s']:.2f} s = {found['eight_s'] / found['fork_s']:.2f} x one",
            ),
            (
                "PSS of an idle fork",
                f"{found['fork_pss']:.0f} MiB = {found['fork_pss'] / found['cold_pss']:.2f} of a cold one's",
            ),
        ],
    )


def forks(state: Path, gateway: Gateway, address: str, rounds: int) -> dict[str, float]:
    image, found = f"{address}/demo:1", {}
    off = ("--templates-enabled", "false")
    with Process(state, gateway, address, *off) as driver:
        times, memory = [], []
        for number in range(rounds + 1):
            sandbox = Sandbox(
                driver, gateway, request_of(f"cold{number}", image, 512, 0)
            )
            gateway.wait_hello(sandbox.id)
            times.append(sandbox.create_s)
            memory.append(sandbox.pss_mib())
            sandbox.delete()
        found["cold_s"], found["cold_pss"] = median(times[1:]), median(memory)
    with Process(state, gateway, address, "--templates-enabled", "true") as driver:
        first = Sandbox(driver, gateway, request_of("first", image, 512, 0))
        wait_template(driver, 0)
        first.delete()
        times = []
        for number in range(rounds + 1):
            sandbox = Sandbox(
                driver, gateway, request_of(f"fork{number}", image, 512, 0)
            )
            times.append(sandbox.create_s)
            sandbox.delete()
        found["fork_s"] = median(times[1:])
        found["eight_s"] = median(
            [eight(driver, gateway, image, n, found) for n in range(rounds)]
        )
    with Process(
        state, gateway, address, "--templates-enabled", "true", "--warm-pool", "1"
    ) as driver:
        times = []
        for number in range(rounds + 1):
            wait_template(driver, 1)
            time.sleep(0.5)
            sandbox = Sandbox(
                driver, gateway, request_of(f"warm{number}", image, 512, 0)
            )
            times.append(sandbox.create_s)
            sandbox.delete()
        found["warm_s"] = median(times[1:])
    return found


def eight(
    driver: Process, gateway: Gateway, image: str, number: int, found: dict[str, float]
) -> float:
    messages = [request_of(f"eight{number}-{n}", image, 512, 0) for n in range(8)]
    begun = time.perf_counter()
    for message in messages:
        driver.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=message))
    for message in messages:
        wait_reason(driver.stub, message.id, "Running")
    took = time.perf_counter() - begun
    sandboxes = [Sandbox.__new__(Sandbox) for _ in messages]
    for sandbox, message in zip(sandboxes, messages, strict=True):
        sandbox.driver, sandbox.stub, sandbox.gateway, sandbox.id = (
            driver,
            driver.stub,
            gateway,
            message.id,
        )
        gateway.wait_hello(sandbox.id)
    found["fork_pss"] = median([sandbox.pss_mib() for sandbox in sandboxes])
    for sandbox in sandboxes:
        sandbox.delete()
    return took


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-forks", action="store_true")
    parser.add_argument("--shapes", default=SHAPES, help="RAM:TOUCHED,... in MiB")


def measure(rounds: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """`forks`, and for each of `shapes` what suspensions, resumes and snapshots of it took."""
    wanted = [tuple(map(int, shape.split(":"))) for shape in chosen.shapes.split(",")]
    gateway = Gateway()
    figures: dict[str, Any] = {}
    state = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    state.chmod(0o755)
    (state / "boot").symlink_to(WORK / "boot")
    try:
        with registry(state / "registry") as address, tap():
            push(WORK / "demo-image", "demo", f"{address}/demo:1")
            if not chosen.no_forks:
                figures["forks"] = forks(state, gateway, address, rounds)
            off = ("--templates-enabled", "false")
            with Process(state, gateway, address, *off) as driver:
                figures["shapes"] = {
                    f"{ram} / {touched} MiB": shape(
                        driver, gateway, f"{address}/demo:1", ram, touched, rounds
                    )
                    for ram, touched in wanted
                }
    finally:
        gateway.close()
        shutil.rmtree(state, ignore_errors=True)
    return figures


def show(figures: dict[str, Any]) -> None:
    if "forks" in figures:
        show_forks(figures["forks"])
    show_shapes(figures["shapes"])
