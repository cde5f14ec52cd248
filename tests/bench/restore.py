"""Measures suspend, resume, snapshots against plain libvirt and QEMU doing the same, in one run. Started by scripts/bench restore.

Every figure is a median of at least 5 rounds. The two sides take turns on the same files, with the same domain XML.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench.plain import Plain, tap
from tests.bench.printing import median, table
from tests.bench.process import Process
from tests.bench.sandbox import Sandbox, request_of
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK

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


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default=SHAPES, help="RAM:TOUCHED,... in MiB")


def measure(rounds: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """For each of `shapes` what suspensions, resumes and snapshots of it took."""
    wanted = [tuple(map(int, shape.split(":"))) for shape in chosen.shapes.split(",")]
    gateway = Gateway()
    figures: dict[str, Any] = {}
    state = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    state.chmod(0o755)
    (state / "boot").symlink_to(WORK / "boot")
    try:
        with registry(state / "registry") as address, tap():
            push(WORK / "demo-image", "demo", f"{address}/demo:1")
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
    show_shapes(figures["shapes"])
