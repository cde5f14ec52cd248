"""Where a cold boot, a fork, a resume and a snapshot go: the steps that the driver notes of each. Started by scripts/bench.

One machine of 512 MiB, one after the other; medians of begin and end of each step, in milliseconds from the wish.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench.printing import median
from tests.bench.process import Process
from tests.bench.sandbox import Sandbox, request_of, wait_template
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from vmdriver.cli.waterfall import waterfall
from vmdriver.model.timing import TimedStep
from vmdriver.service import admin_client

MIB = 512
TITLES = {
    "boot": "A cold boot",
    "fork": "A fork of a template",
    "claim": "A fork that waited",
    "resume": "A resume",
    "snapshot": "A snapshot",
}
Spans = dict[str, tuple[float, float]]
"""Step -> begin and end; of those of one name the first begin and the last end."""


def spans_of(sandbox: Sandbox, kind: str) -> Spans:
    """Of its last start, which was of that kind."""
    start = sandbox.record()["last_start"]
    if start["kind"] != kind:
        raise RuntimeError(f"it was {start['kind']}, not {kind}")
    return spans_in(start["steps"])


def spans_in(steps: list[dict[str, Any]]) -> Spans:
    found: Spans = {}
    for step in steps:
        begun, ended = step["begun_ms"], step["ended_ms"]
        first, last = found.get(step["name"], (begun, ended))
        found[step["name"]] = min(first, begun), max(last, ended)
    return found


def snapshot_spans(sandbox: Sandbox, name: str) -> Spans:
    socket = sandbox.driver.state / "run" / "admin.sock"
    admin_client.create_snapshot(socket, sandbox.id, name, False, lambda *_: None)
    (entry,) = sandbox.record()["snapshots"]
    admin_client.delete_snapshot(socket, sandbox.id, name)
    return spans_in(entry["steps"])


def medians(each: list[Spans]) -> list[list[Any]]:
    """Name, begin, end, in the order in which they began."""
    of: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in each:
        for step, span in one.items():
            of[step].append(span)
    found = [
        [name, median([b for b, _ in spans]), median([e for _, e in spans])]
        for name, spans in of.items()
    ]
    return sorted(found, key=lambda step: (step[1], -step[2]))


def cold(driver: Process, gateway: Gateway, image: str, rounds: int) -> dict[str, Any]:
    """Boots of new sandboxes; then resumes and snapshots of one."""
    found: dict[str, list[Spans]] = defaultdict(list)
    for number in range(rounds + 1):
        name = f"boot{number}"
        sandbox = Sandbox(driver, gateway, request_of(name, image, MIB, 0))
        gateway.wait_hello(sandbox.id)
        found["boot"].append(spans_of(sandbox, "booted"))
        if number < rounds:
            sandbox.delete()
    for number in range(rounds + 1):
        found["snapshot"].append(snapshot_spans(sandbox, f"s{number}"))
    for _ in range(rounds + 1):
        sandbox.suspend()
        sandbox.start()
        found["resume"].append(spans_of(sandbox, "resumed"))
    sandbox.delete()
    # Caches are filled by the first of each.
    return {kind: medians(each[1:]) for kind, each in found.items()}


def forked(
    driver: Process, gateway: Gateway, image: str, rounds: int, waiting: int
) -> list[list[Any]]:
    found = []
    for number in range(rounds + 2):
        name = f"fork{waiting}-{number}"
        sandbox = Sandbox(driver, gateway, request_of(name, image, MIB, 0))
        gateway.wait_hello(sandbox.id)
        if number:  # the first boots where there is no template yet
            found.append(spans_of(sandbox, "template"))
        wait_template(driver, waiting)
        sandbox.delete()
    return medians(found[1:])


def measure(rounds: int, _: object) -> dict[str, Any]:
    """`steps`: kind -> name, begin and end of each step."""
    state = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    state.chmod(0o755)
    (state / "boot").symlink_to(WORK / "boot")
    gateway, templates = Gateway(), "--templates-enabled"
    try:
        with registry(state / "registry") as address:
            image = f"{address}/demo:1"
            push(WORK / "demo-image", "demo", image)
            with Process(state, gateway, address, templates, "false") as driver:
                found = cold(driver, gateway, image, rounds)
            with Process(state, gateway, address, templates, "true") as driver:
                found["fork"] = forked(driver, gateway, image, rounds, 0)
            more = (templates, "true", "--warm-pool", "1")
            with Process(state, gateway, address, *more) as driver:
                found["claim"] = forked(driver, gateway, image, rounds, 1)
    finally:
        gateway.close()
        shutil.rmtree(state, ignore_errors=True)
    return {"steps": {kind: found[kind] for kind in TITLES}}


def show(figures: dict[str, Any]) -> None:
    for kind, steps in figures["steps"].items():
        print(f"\n{TITLES[kind]}: medians")
        timed = [
            TimedStep(name=name, begun_ms=begun, ended_ms=ended)
            for name, begun, ended in steps
        ]
        print("\n".join(waterfall(timed, 100)))
