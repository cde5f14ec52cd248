"""Measures a resume, StartSandbox -> thawed, against a cold boot and against libvirt's own restore of the same machine, which take turns in one run; and shows where its time goes.

`scripts/bench resume --shapes 256:64,1024:64,4096:64,4096:1024`
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.plain import Plain, tap
from tests.bench.printing import table
from tests.bench.process import Process
from tests.bench.sandbox import Sandbox, request_of
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK

SHAPES = "256:64,1024:64,4096:64,4096:1024"
THAWED = "hygiene"
"""The step at whose end the workload goes on."""


def steps_of(sandbox: Sandbox) -> dict[str, tuple[float, float]]:
    """Of its last start: begin and end of each step, in seconds from the wish; of those of one name
    the first begin and the last end.
    """
    found: dict[str, tuple[float, float]] = {}
    for step in sandbox.record()["last_start"]["steps"]:
        begun, ended = step["begun_ms"] / 1e3, step["ended_ms"] / 1e3
        first, last = found.get(step["name"], (begun, ended))
        found[step["name"]] = min(first, begun), max(last, ended)
    return found


def shape(
    driver: Process, gateway: Gateway, image: str, name: str, rounds: int
) -> dict[str, Any]:
    ram, touched = map(int, name.split(":"))
    cold = []
    for number in range(3):
        sandbox = Sandbox(
            driver, gateway, request_of(f"c{number}-{ram}-{touched}", image, ram, 0)
        )
        cold.append(sandbox.create_s)
        sandbox.delete()
    sandbox = Sandbox(
        driver, gateway, request_of(f"m{ram}-{touched}", image, ram, touched)
    )
    gateway.wait_hello(sandbox.id)
    gateway.shell(
        sandbox.id, "while [ ! -e /tmp/touched ]; do sleep 0.1; done", timeout_s=300
    )
    thawed, running, restores = [], [], []
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    plain = None
    for number in range(rounds + 1):
        sandbox.suspend()
        stored = sandbox.record()["memory"]["stored_bytes"]
        plain = plain or Plain(sandbox)
        plain.save()
        restore_s = plain.restore()
        running_s = sandbox.start()
        if number == 0:
            continue  # caches are filled by the first
        found = steps_of(sandbox)
        for step, span in found.items():
            spans[step].append(span)
        thawed.append(found[THAWED][1])
        restores.append(restore_s)
        running.append(running_s)
    assert plain is not None
    plain.end()
    sandbox.delete()
    steps = {
        step: (median(b for b, _ in times), median(e for _, e in times))
        for step, times in spans.items()
    }
    return {
        "cold_s": median(cold),
        "thawed_s": median(thawed),
        "thawed_least_s": min(thawed),
        "running_s": median(running),
        "restore_s": median(restores),
        "restore_least_s": min(restores),
        "stored_mib": stored / 2**20,
        "steps": steps,
    }


def show(figures: dict[str, Any]) -> None:
    shapes: dict[str, dict[str, Any]] = figures["resume"]
    rows = []
    for name, v in shapes.items():
        rows.append(
            (
                name,
                f"thawed after {v['thawed_s']:.3f} s (least {v['thawed_least_s']:.3f}) = "
                f"{v['thawed_s'] / v['cold_s']:.3f} x cold boot, "
                f"{v['thawed_s'] / v['restore_s']:.2f} x virsh restore",
            )
        )
    table("Resume: MiB of RAM : touched by the workload", rows)
    for name, v in shapes.items():
        print(f"\n{name}: ms from the wish, medians")
        whole = max(end for _, end in v["steps"].values())
        for step, (begun, ended) in sorted(v["steps"].items(), key=lambda s: s[1]):
            start = round(50 * begun / whole)
            bar = " " * start + "#" * max(1, round(50 * ended / whole) - start)
            print(f"  {step:<20} {begun * 1e3:7.1f} {ended * 1e3:7.1f}  {bar}")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shapes", default=SHAPES, help="RAM:TOUCHED,... in MiB")


def measure(rounds: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """`resume`: for each shape seconds, and begin and end of each step."""
    state = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    state.chmod(0o755)
    (state / "boot").symlink_to(WORK / "boot")
    gateway, off = Gateway(), ("--templates-enabled", "false")
    try:
        with registry(state / "registry") as address, tap():
            image = f"{address}/demo:1"
            push(WORK / "demo-image", "demo", image)
            with Process(state, gateway, address, *off) as driver:
                shapes = {
                    name: shape(driver, gateway, image, name, rounds)
                    for name in chosen.shapes.split(",")
                }
    finally:
        gateway.close()
        shutil.rmtree(state, ignore_errors=True)
    return {"resume": shapes}
