"""Measures a resume, StartSandbox -> thawed, against a cold boot and against libvirt's own restore of the same machine, which take turns in one run; and shows where its time goes.

`scripts/bench resume --shapes 256:64,1024:64,4096:64,4096:1024`
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
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
LONGEST_S = 170.0
"""For one shape's rounds; on a busy machine there are fewer then, and the figures say how many."""
THAWED = "hygiene"
"""The step at whose end the workload goes on."""
OUTSIDE = {
    "load_s": r"outside: load \S+ took ([\d.]+) s",
    "go_on_s": r"outside: resume \S+ took ([\d.]+) s",
    "guest_s": r"outside: guest renew took ([\d.]+) s",
}
"""What the driver waits for, by its own debug log."""


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


def of_log(driver: Process, offset: int) -> dict[str, float]:
    """Seconds of one resume that were not the driver's: libvirt's and QEMU's load, the guest's
    answer, and what the guest itself says of that by its own clock (translated code under TCG).
    """
    with driver.log.open(errors="replace") as file:
        file.seek(offset)
        text = file.read()
    found = {}
    for name, pattern in OUTSIDE.items():
        numbers = re.findall(pattern, text)
        if numbers:
            found[name] = sum(map(float, numbers))
    inside = re.findall(r"hygiene in the guest: \{(.*?)\}", text)
    numbers = re.findall(r"_ms\W+([\d.]+)", inside[-1]) if inside else []
    found["in_guest_s"] = sum(map(float, numbers)) / 1e3
    return found


@dataclass
class Measured:
    """Of one shape; each list has a figure for each round."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    spans: dict[str, list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def take(self, found: dict[str, float]) -> None:
        """One round's."""
        for name, value in found.items():
            self.seconds[name].append(value)

    def figures(self) -> dict[str, Any]:
        """Medians, and the least of what is compared."""
        found: dict[str, Any] = {n: median(v) for n, v in self.seconds.items()}
        for name in ("cold", "thawed", "restore"):
            found[f"{name}_least_s"] = min(self.seconds[f"{name}_s"])
        found["rounds"] = len(self.seconds["thawed_s"])
        found["steps"] = {
            step: (median(b for b, _ in times), median(e for _, e in times))
            for step, times in self.spans.items()
        }
        return found


def cold_boot(
    driver: Process, gateway: Gateway, image: str, name: str, ram: int
) -> float:
    sandbox = Sandbox(driver, gateway, request_of(name, image, ram, 0))
    sandbox.delete()
    return sandbox.create_s


def resumed(driver: Process, sandbox: Sandbox, measured: Measured) -> None:
    """One round's resume."""
    offset = driver.log.stat().st_size
    running_s = sandbox.start()
    steps = steps_of(sandbox)
    for step, span in steps.items():
        measured.spans[step].append(span)
    measured.take({"thawed_s": steps[THAWED][1], "running_s": running_s})
    measured.take(of_log(driver, offset))


def shape(
    driver: Process, gateway: Gateway, image: str, name: str, rounds: int
) -> dict[str, Any]:
    """The three take turns, so that they meet the same machine: a cold boot, libvirt's restore of
    its own save file, and a resume. The other side's machine stands still meanwhile.
    """
    ram, touched = map(int, name.split(":"))
    message = request_of(f"m{ram}-{touched}", image, ram, touched)
    sandbox = Sandbox(driver, gateway, message)
    gateway.wait_hello(sandbox.id)
    gateway.shell(
        sandbox.id, "while [ ! -e /tmp/touched ]; do sleep 0.1; done", timeout_s=300
    )
    measured, unmeasured = Measured(), Measured()
    plain, begun = None, time.monotonic()
    try:
        for number in range(rounds + 1):
            if number > 1 and time.monotonic() - begun > LONGEST_S:
                print(f"{name}: given up after {number - 1} rounds", file=sys.stderr)
                break
            sandbox.suspend()
            stored = sandbox.record()["memory"]["stored_bytes"]
            plain = plain or Plain(sandbox)
            plain.save()
            restore_s = plain.restore()
            plain.domain.suspend()
            # Caches are filled by the first.
            into = measured if number else unmeasured
            into.take({"restore_s": restore_s, "stored_mib": stored / 2**20})
            resumed(driver, sandbox, into)
            cold = f"c{number}-{ram}-{touched}"
            into.take({"cold_s": cold_boot(driver, gateway, image, cold, ram)})
            said = {n: round(v[-1], 3) for n, v in into.seconds.items()}
            print(f"{name}: round {number}: {said}", file=sys.stderr, flush=True)
    finally:
        if plain is not None:
            plain.end()
    sandbox.delete()
    return measured.figures()


def show(figures: dict[str, Any]) -> None:
    shapes: dict[str, dict[str, Any]] = figures["resume"]
    rows = []
    for name, v in shapes.items():
        others_s = v["load_s"] + v["go_on_s"] + v["guest_s"]
        rows.append(
            (
                name,
                f"thawed after {v['thawed_s']:.3f} s (least {v['thawed_least_s']:.3f}) = "
                f"{v['thawed_s'] / v['cold_s']:.3f} x cold boot, "
                f"{v['thawed_s'] / v['restore_s']:.2f} x virsh restore (goal 0.6); "
                f"libvirt and QEMU {v['load_s'] + v['go_on_s']:.3f} s, the guest "
                f"{v['guest_s']:.3f} s ({v['in_guest_s']:.3f} by its clock), "
                f"ours {v['thawed_s'] - others_s:.3f} s; {v['rounds']} rounds",
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
