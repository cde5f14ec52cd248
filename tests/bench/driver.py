"""Measures the driver against plain libvirt, in one run. Started by scripts/bench.

Every figure is a median of at least 5 rounds; where it is compared, the two sides take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.bench import plain as by_hand
from tests.bench.plain import PlainLibvirt, plain_domain
from tests.bench.printing import median, table
from tests.bench.process import Process, stopped_records, write_records
from tests.bench.sandbox import request, wait_reason
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from tests.fakes.service import served
from tests.fakes.settings import SETTINGS
from vmdriver._proto import compute_driver_pb2 as pb

# --- the service alone, on a fake host --------------------------------------------------------


async def rpc_latency(count: int, rounds: int) -> dict[str, float]:
    """Milliseconds of a Get and of a List with `count` known sandboxes."""
    directory = Path(tempfile.mkdtemp())
    try:
        async with served(
            directory,
            world=stopped_records(count),
            settings=dataclasses.replace(SETTINGS, max_sandboxes=9999),
        ) as s:
            get, list_ = (
                pb.GetSandboxRequest(sandbox_id="r0000"),
                pb.ListSandboxesRequest(),
            )
            result: dict[str, list[float]] = {"get": [], "list": []}
            for _ in range(20):
                await s.stub.GetSandbox(get)
            for _ in range(max(rounds * 20, 100)):
                begun = time.perf_counter()
                await s.stub.GetSandbox(get)
                result["get"].append((time.perf_counter() - begun) * 1e3)
            for _ in range(rounds * 3):
                begun = time.perf_counter()
                await s.stub.ListSandboxes(list_)
                result["list"].append((time.perf_counter() - begun) * 1e3)
    finally:
        shutil.rmtree(directory)
    return {name: median(values) for name, values in result.items()}


async def fan_out(watchers: int = 10, events: int = 1000) -> float:
    """Events a second that arrive at all watchers together."""
    directory = Path(tempfile.mkdtemp())
    try:
        async with served(directory, watch_limit=events + 100) as s:
            await s.create("s1")
            streams = [
                s.stub.WatchSandboxes(pb.WatchSandboxesRequest())
                for _ in range(watchers)
            ]
            for stream in streams:
                await stream.read()

            async def drain(stream: Any) -> None:
                for _ in range(events):
                    await stream.read()

            begun = time.perf_counter()
            readers = [asyncio.create_task(drain(stream)) for stream in streams]
            for number in range(events):
                s.driver.tell("s1", "Bench", str(number))
                if number % 20 == 0:
                    await asyncio.sleep(0)
            await asyncio.gather(*readers)
            took = time.perf_counter() - begun
            for stream in streams:
                stream.cancel()
    finally:
        shutil.rmtree(directory)
    return watchers * events / took


# --- a real driver process ------------------------------------------------------------------------


def at_scale(gateway: Gateway, address: str, rounds: int) -> dict[str, float]:
    """Start time and memory with no and with 1,000 records."""
    result: dict[str, float] = {}
    for count in (0, 1000):
        starts, memory = [], []
        for _ in range(rounds):
            state = Path(tempfile.mkdtemp())
            state.chmod(0o755)
            (state / "boot").symlink_to(WORK / "boot")
            write_records(state, count)
            with Process(state, gateway, address) as driver:
                starts.append(driver.start_s)
                memory.append(driver.rss_mib())
            shutil.rmtree(state)
        result[f"start_{count}_s"], result[f"rss_{count}_mib"] = (
            median(starts),
            median(memory),
        )
    return result


# --- lives of machines, against plain libvirt -------------------------------------------------------


def own_ms(
    log: Path, sandbox_id: str, begun: float, ended: float, until: str = ""
) -> float:
    """Milliseconds of a wall-clock window that the driver spent itself: what libvirt and other programs took is
    subtracted, from the driver's own debug log. With `until` the window ends at that event of the sandbox.
    """
    calls: list[tuple[float, float]] = []
    for line in log.read_text().splitlines():
        stamp = line.split(" ", 1)[0]
        try:
            at = datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
        except ValueError:
            continue
        if not begun - 0.001 <= at <= ended + 0.001:
            continue
        match = re.search(r"outside: .* took ([\d.]+) s", line)
        if match:
            calls.append((max(begun, at - float(match[1])), at))
        if until and f"{sandbox_id}: {until}:" in line:
            ended = at
            break
    outside, until_then = 0.0, begun
    for first, last in sorted(calls):  # several at one time count once
        outside += max(0.0, last - max(first, until_then))
        until_then = max(until_then, last)
    return (ended - begun - outside) * 1e3


def outside_s(log: Path, what: str) -> float:
    """Seconds of the first call of that name in the driver's debug log."""
    match = re.search(rf"outside: {what} took ([\d.]+) s", log.read_text())
    return float(match[1]) if match else 0.0


def lives(driver: Process, gateway: Gateway, image: str, rounds: int) -> dict[str, Any]:
    stub, ours, others, stages = driver.stub, [], [], []
    plain = None
    own: dict[str, list[float]] = {"create": [], "stop": [], "start": [], "delete": []}
    with by_hand.tap():
        for number in range(rounds + 1):
            sandbox = request(number, image)
            marks = {"create": time.time()}
            begun = time.perf_counter()
            stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox))
            wait_reason(stub, sandbox.id, "Running")
            took = time.perf_counter() - begun
            ends = {"create": time.time()}
            gateway.wait_hello(sandbox.id)
            called_back = time.perf_counter() - begun - took
            record = json.loads(
                (driver.state / "sandboxes" / sandbox.id / "record.json").read_text()
            )
            if plain is None:
                definition = plain_domain(driver.state, sandbox.id)
                plain = PlainLibvirt(driver.state / "plain")
            marks["stop"] = time.time()
            stub.StopSandbox(pb.StopSandboxRequest(sandbox_id=sandbox.id))
            ends["stop"] = marks["start"] = time.time()
            stub.StartSandbox(pb.StartSandboxRequest(sandbox_id=sandbox.id))
            wait_reason(stub, sandbox.id, "Running")
            ends["start"] = marks["delete"] = time.time()
            stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=sandbox.id))
            ends["delete"] = time.time()
            other = plain.start(*definition)
            if number == 0:
                continue  # caches are filled by the first
            ours.append(took)
            others.append(other)
            launch = outside_s(driver.log, rf"start {record['plan']['domain']}")
            own_s = (
                own_ms(
                    driver.log, sandbox.id, marks["create"], ends["create"], "Started"
                )
                / 1e3
            )
            stages.append(
                {
                    **record["boot_seconds"],
                    "launch": launch,
                    "callback": called_back,
                    "own": own_s,
                }
            )
            for name, values in own.items():
                until = "Started" if name in {"create", "start"} else ""
                values.append(
                    own_ms(driver.log, sandbox.id, marks[name], ends[name], until)
                )
    boot = {name: median([stage[name] for stage in stages]) for name in stages[0]}
    return {
        "create_to_running_s": median(ours),
        "virsh_start_to_running_s": median(others),
        "ratio": median([a / b for a, b in zip(ours, others, strict=True)]),
        "driver_ms": {name: median(values) for name, values in own.items()},
        "boot": boot,
    }


def bar(result: dict[str, Any]) -> None:
    boot = result["boot"]
    inside = boot["supervisor"] + boot["own"] + boot["launch"]
    parts = {
        "driver": boot["own"],
        "libvirt and QEMU start": boot["launch"],
        "firmware, kernel's unpacking": max(
            0.0, result["create_to_running_s"] - inside
        ),
        "kernel to init": boot["init"],
        "init: modules": boot["modules"] - boot["init"],
        "init: disks, network, files": boot["supervisor"] - boot["modules"],
        "supervisor to its first call": boot["callback"],
    }
    total = sum(parts.values())
    print("\nWhere a cold boot's time goes (create -> the supervisor's first call)")
    for (name, seconds), mark in zip(parts.items(), "DQFKMIS", strict=True):
        print(
            f"  {name.ljust(30)} {seconds:6.2f} s  {mark * round(60 * seconds / total)}"
        )
    print(
        "  "
        + "".join(
            m * round(60 * s / total)
            for s, m in zip(parts.values(), "DQFKMIS", strict=True)
        )
    )


def measure(rounds: int, _: object) -> dict[str, Any]:
    """RPCs and watchers of the service alone; a process with many records; lives of machines."""
    figures: dict[str, Any] = {
        "rpc_ms": {n: asyncio.run(rpc_latency(n, rounds)) for n in (1, 100, 1000)},
        "watch_events_per_s": median([asyncio.run(fan_out()) for _ in range(rounds)]),
    }
    gateway = Gateway()
    state = WORK / "bench-state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    (state / "boot").symlink_to(WORK / "boot")
    try:
        with registry(state / "registry") as address:
            figures["scale"] = at_scale(gateway, address, rounds)
            push(WORK / "demo-image", "demo", f"{address}/demo:1")
            with Process(state, gateway, address) as driver:
                figures["lives"] = lives(driver, gateway, f"{address}/demo:1", rounds)
    finally:
        gateway.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(state)
    return figures


def show(figures: dict[str, Any]) -> None:
    rows = [
        (f"{n} sandboxes", f"Get {v['get']:.2f} ms   List {v['list']:.2f} ms")
        for n, v in figures["rpc_ms"].items()
    ]
    table("Unary RPC latency (median)", rows)
    events = f"{figures['watch_events_per_s']:.0f} deliveries/s"
    table("Watch", [("10 watchers, 1,000 events", events)])
    scale = [(key, f"{value:.2f}") for key, value in figures["scale"].items()]
    table("A driver process", scale)
    found = figures["lives"]
    rows = [
        ("create -> running", f"{found['create_to_running_s']:.2f} s"),
        ("virsh start -> running", f"{found['virsh_start_to_running_s']:.2f} s"),
        *(
            (f"driver's own time in {name}", f"{value:.1f} ms")
            for name, value in found["driver_ms"].items()
        ),
    ]
    table("A machine, and plain libvirt's with the same domain XML, unboxed", rows)
    bar(found)
