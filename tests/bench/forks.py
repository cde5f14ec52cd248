"""What a new sandbox from a template, and one from the warm pool, wait for, step by step. Eight at once: at_once.py.

Started by scripts/bench. Three drivers take turns: one without templates, one with, one with machines that wait. Medians of
5 rounds or more; the steps are those that each driver has noted of its own starts. With --count one fork of each kind is
watched by strace besides: how often something is made durable, and which programs are begun for it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.goals import GUEST
from tests.bench.printing import median, table
from tests.bench.process import Process
from tests.bench.sandbox import Sandbox, request_of, wait_template
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK

MIB = 512
KINDS = {
    "cold": ("--templates-enabled", "false"),
    "fork": ("--templates-enabled", "true"),
    "claim": ("--templates-enabled", "true", "--warm-pool", "1"),
}


@contextlib.contextmanager
def drivers(
    folder: Path, gateway: Gateway, address: str, kinds: list[str], *more: str
) -> Iterator[dict[str, Process]]:
    """One for each of these kinds, side by side, all with `more` options; on what earlier ones left in `folder`."""
    with contextlib.ExitStack() as stack:
        found = {}
        for number, (kind, options) in enumerate(KINDS.items()):
            if kind not in kinds:
                continue
            state = folder / kind
            if not state.exists():
                state.mkdir(mode=0o755)
                (state / "boot").symlink_to(WORK / "boot")
            own = ("--instance", f"vmdriver-{kind}")
            pool = ("--address-pool", f"10.{120 + number}.0.0/17")
            process = Process(state, gateway, address, *own, *pool, *options, *more)
            found[kind] = stack.enter_context(process)
        yield found


class Watched:
    """Counts what a driver has made durable and which programs it has begun."""

    def __init__(self, driver: Process, folder: Path) -> None:
        self._log = folder / "strace.txt"
        calls = "trace=fsync,fdatasync,execve"
        pid, output = str(driver.process.pid), str(self._log)
        self._strace = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", calls, "-o", output, "-p", pid],
            stderr=subprocess.DEVNULL,
        )
        time.sleep(1.0)

    def counts(self) -> dict[str, int]:
        self._strace.send_signal(signal.SIGINT)
        self._strace.wait(10)
        found: Counter[str] = Counter()
        for line in self._log.read_text().splitlines():
            if re.search(r"\bf(data)?sync\(", line):
                found["made durable"] += 1
            elif match := re.search(r'execve\("([^"]+)".* = 0$', line):
                found[f"program {Path(match[1]).name}"] += 1
        return dict(found)


def ready(driver: Process, kind: str) -> None:
    if kind != "cold":
        wait_template(driver, 1 if kind == "claim" else 0)
        time.sleep(0.5)


def steps_of(driver: Process, sandbox_id: str) -> dict[str, float]:
    """Milliseconds of each step of its start, and of the whole."""
    path = driver.state / "sandboxes" / sandbox_id / "record.json"
    record = json.loads(path.read_text())
    spans: dict[str, float] = defaultdict(float)
    for step in record["last_start"]["steps"]:
        spans[step["name"]] += step["ended_ms"] - step["begun_ms"]
    spans["all"] = max(s["ended_ms"] for s in record["last_start"]["steps"])
    return dict(spans)


def measured(
    rounds: int, folder: Path, gateway: Gateway, kinds: list[str], *, counting: bool
) -> dict[str, Any]:
    times: dict[str, list[float]] = defaultdict(list)
    steps: dict[str, list[dict[str, float]]] = defaultdict(list)
    figures: dict[str, Any] = {}
    with (
        registry(folder / "registry") as address,
        drivers(folder, gateway, address, kinds) as running,
    ):
        image = f"{address}/demo:1"
        push(WORK / "demo-image", "demo", image)
        for kind, driver in running.items():
            first = Sandbox(driver, gateway, request_of(f"first-{kind}", image, MIB, 0))
            ready(driver, kind)
            first.delete()
        for number in range(rounds + 1):
            for kind, driver in running.items():
                ready(driver, kind)
                one = Sandbox(
                    driver, gateway, request_of(f"{kind}{number}", image, MIB, 0)
                )
                if number:  # caches are filled by the first
                    times[kind].append(one.create_s)
                    steps[kind].append(steps_of(driver, one.id))
                one.delete()
        for kind, driver in running.items() if counting else ():
            ready(driver, kind)
            watched = Watched(driver, folder)
            one = Sandbox(driver, gateway, request_of(f"n{kind}", image, MIB, 0))
            figures[f"{kind}_counts"] = watched.counts()
            one.delete()
    for kind, values in times.items():
        figures[f"{kind}_s"] = median(values)
        figures[f"{kind}_least_s"] = min(values)
    for kind, each in steps.items():
        names = list(dict.fromkeys(name for one in each for name in one))
        figures[f"{kind}_steps_ms"] = {
            name: median([one.get(name, 0.0) for one in each]) for name in names
        }
    return figures


def show_found(found: dict[str, Any]) -> None:
    if all(f"{kind}_s" in found for kind in KINDS):
        show_ratios(found)
    for kind, name in (("fork", "a fork"), ("claim", "a claim")):
        if f"{kind}_steps_ms" not in found:
            continue
        lines = [
            (("  " if step in GUEST else "") + step, f"{ms:7.1f} ms")
            for step, ms in found[f"{kind}_steps_ms"].items()
        ]
        table(f"Where the time of {name} goes (the guest's moved in)", lines)
        if f"{kind}_counts" in found:
            print(f"  {found[f'{kind}_counts']}")


def show_ratios(found: dict[str, Any]) -> None:
    cold = found["cold_s"]
    rows = [("cold", f"{cold:.2f} s")]
    for kind, name in (("fork", "from a template"), ("claim", "from the warm pool")):
        took = found[f"{kind}_s"]
        rows.append((name, f"{took:.2f} s = {took / cold:.2f}"))
    table("A new sandbox, CreateSandbox -> supervisor started", rows)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", action="store_true")
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of them only")


def measure(rounds: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """`fork_steps`: seconds of each kind, and milliseconds of its steps. `forks`: these seconds as they were called first."""
    folder = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    folder.chmod(0o755)
    gateway = Gateway()
    try:
        kinds = chosen.kinds.split(",")
        found = measured(rounds, folder, gateway, kinds, counting=chosen.count)
    finally:
        gateway.close()
        shutil.rmtree(folder, ignore_errors=True)
    names = {"cold_s": "cold_s", "fork_s": "fork_s", "claim_s": "warm_s"}
    first = {name: found[key] for key, name in names.items() if key in found}
    return {"fork_steps": found, "forks": first}


def show(figures: dict[str, Any]) -> None:
    show_found(figures["fork_steps"])
