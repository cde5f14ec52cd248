"""Measures the driver against plain libvirt, in one run. Started by scripts/bench.

Every figure is a median of at least 5 rounds; where it is compared, the two sides take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # libvirt forks in this process

import grpc
import libvirt

from tests.fakes import serve
from tests.fakes.driver import SETTINGS, spec
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from tests.fakes.service import served
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.hypervisor.connection import start_event_loop
from vmdriver.hypervisor.embedded import embed_uri
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SandboxRecord, utc_now

INSTANCE = "vmdriver-bench"


def median(values: list[float]) -> float:
    return statistics.median(values)


def table(title: str, rows: list[tuple[str, str]]) -> None:
    print(f"\n{title}")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"  {name.ljust(width)}  {value}")


# --- the service alone, on a fake host --------------------------------------------------------


def stopped_records(count: int) -> World:
    world = World()
    for number in range(count):
        now = utc_now()
        record = SandboxRecord(
            spec=spec(f"r{number:04}"),
            intent=Intent.STOPPED,
            phase=Phase.STOPPED,
            created_at=now,
            changed_at=now,
        )
        world.records[record.id] = record.model_dump_json()
    return world


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


class Process:
    """vmdriver serve on a state directory."""

    def __init__(
        self, state: Path, gateway: Gateway, registry_address: str, *options: str
    ) -> None:
        self.state, self.socket = state, Path(tempfile.mkdtemp()) / "run" / "d.sock"
        where = (state, self.socket, INSTANCE, gateway.url, registry_address)
        more = (
            "--accelerator",
            "tcg",
            "--max-sandboxes",
            "2000",
            "--log-level",
            "debug",
            *(options or ("--templates-enabled", "false")),
        )
        self.command = [*serve.SERVE, *serve.arguments(*where, *more)]
        self.log = self.state / "bench.log"

    def __enter__(self) -> Process:
        begun = time.perf_counter()
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(self.command, stdout=output, stderr=output)
        self.channel = grpc.insecure_channel(f"unix:{self.socket}")
        self.stub = pb_grpc.ComputeDriverStub(self.channel)
        self.stub.ListSandboxes(
            pb.ListSandboxesRequest(), wait_for_ready=True, timeout=60
        )
        self.start_s = time.perf_counter() - begun
        return self

    def rss_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.socket.parent.parent, ignore_errors=True)


def write_records(state: Path, count: int) -> None:
    for sandbox_id, text in stopped_records(count).records.items():
        directory = state / "sandboxes" / sandbox_id
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "record.json").write_text(text)


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


def request(number: int, image: str) -> pb.DriverSandbox:
    template = pb.DriverSandboxTemplate(image=image)
    spec_ = pb.DriverSandboxSpec(template=template, command=["/bin/sleep", "infinity"])
    return pb.DriverSandbox(
        id=f"bench-{os.getpid()}-{number}", name="bench", spec=spec_
    )


def wait_reason(stub: Any, sandbox_id: str, reason: str) -> None:
    while True:
        found = stub.GetSandbox(pb.GetSandboxRequest(sandbox_id=sandbox_id)).sandbox
        if found.status.conditions[0].reason == reason:
            return
        if "Failed" in found.status.conditions[0].reason:
            raise RuntimeError(found.status.conditions[0].message)
        time.sleep(0.005)


class PlainLibvirt:
    """An embedded libvirt of this process's own: what `virsh start` asks for, without virsh's own start."""

    def __init__(self, root: Path) -> None:
        start_event_loop()
        self.connection = libvirt.open(embed_uri(root))

    def start(self, xml: Path, status: Path) -> float:
        """Seconds from virDomainCreate until the same guest says the same thing. Defining is not counted."""
        status.write_bytes(b"\0" * 65536)
        domain = self.connection.defineXML(xml.read_text())
        begun = time.perf_counter()
        domain.create()
        while not status.read_bytes().startswith(b"phase=started"):
            if time.perf_counter() - begun > 60:
                raise RuntimeError("the plain machine did not start")
            time.sleep(0.005)
        took = time.perf_counter() - begun
        domain.destroy()
        domain.undefine()
        return took


def plain_domain(state: Path, sandbox_id: str) -> tuple[Path, Path]:
    """The driver's own domain XML under another name, on copies of its files and a tap of its own."""
    domain = json.loads((state / "sandboxes" / sandbox_id / "record.json").read_text())[
        "plan"
    ]["domain"]
    text = (state / "libvirt" / "etc" / "qemu" / f"{domain}.xml").read_text()
    text = text[text.index("<domain") :]
    files = state / "plain-files"
    files.mkdir(exist_ok=True)
    source = state / "sandboxes" / sandbox_id
    for name in ("seed.img", "status.img", "console.log"):
        if (source / name).exists():  # the seed is gone while the machine is down
            subprocess.run(["cp", "-p", source / name, files / name], check=True)
    layer = json.loads((source / "record.json").read_text())["layers"][-1]
    subprocess.run(["cp", "-p", layer, files / "root.qcow2"], check=True)
    text = text.replace(layer, str(files / "root.qcow2"))
    text = text.replace(str(source), str(files)).replace(domain, "bench-plain")
    text = re.sub(r"<uuid>[^<]*</uuid>", "", text)
    text = re.sub(r"target dev='vmd\w+'", "target dev='vmdbench'", text)
    # What libvirt is told to leave out is ours, too.
    text = re.sub(r"(?s)<qemu:capabilities>.*?</qemu:capabilities>", "", text)
    # Outside of every part of the wall but the user: QEMU itself, in this namespace.
    text = re.sub(
        r"<emulator>[^<]*</emulator>",
        f"<emulator>{shutil.which('qemu-system-' + os.uname().machine)}</emulator>",
        text,
    )
    xml = state / "plain.xml"
    xml.write_text(text)
    configuration = state / "plain" / "etc"
    configuration.mkdir(parents=True, exist_ok=True)
    shutil.copy(state / "libvirt" / "etc" / "qemu.conf", configuration / "qemu.conf")
    return xml, files / "status.img"


def own_ms(
    log: Path, sandbox_id: str, begun: float, ended: float, until: str = ""
) -> float:
    """Milliseconds of a wall-clock window that the driver spent itself: what libvirt and other programs took is
    subtracted, from the driver's own debug log. With `until` the window ends at that event of the sandbox.
    """
    outside = 0.0
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
            outside += float(match[1])
        if until and f"{sandbox_id}: {until}:" in line:
            ended = at
            break
    return (ended - begun - outside) * 1e3


def outside_s(log: Path, what: str) -> float:
    """Seconds of the first call of that name in the driver's debug log."""
    match = re.search(rf"outside: {what} took ([\d.]+) s", log.read_text())
    return float(match[1]) if match else 0.0


def lives(driver: Process, gateway: Gateway, image: str, rounds: int) -> dict[str, Any]:
    stub, ours, others, stages = driver.stub, [], [], []
    plain = None
    own: dict[str, list[float]] = {"create": [], "stop": [], "start": [], "delete": []}
    xml = status = None
    subprocess.run(["ip", "tuntap", "add", "vmdbench", "mode", "tap"], check=True)
    subprocess.run(["ip", "link", "set", "vmdbench", "up"], check=True)
    try:
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
            if xml is None:
                xml, status = plain_domain(driver.state, sandbox.id)
                plain = PlainLibvirt(driver.state / "plain")
            marks["stop"] = time.time()
            stub.StopSandbox(pb.StopSandboxRequest(sandbox_id=sandbox.id))
            ends["stop"] = marks["start"] = time.time()
            stub.StartSandbox(pb.StartSandboxRequest(sandbox_id=sandbox.id))
            wait_reason(stub, sandbox.id, "Running")
            ends["start"] = marks["delete"] = time.time()
            stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=sandbox.id))
            ends["delete"] = time.time()
            other = plain.start(xml, status)
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
    finally:
        subprocess.run(["ip", "link", "del", "vmdbench"], check=False)
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


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = max(5, parser.parse_args().rounds)
    gateway, figures = Gateway(), {}
    state = WORK / "bench-state"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    (state / "boot").symlink_to(WORK / "boot")
    try:
        latency = {n: asyncio.run(rpc_latency(n, rounds)) for n in (1, 100, 1000)}
        figures["rpc_ms"] = latency
        rows = [
            (f"{n} sandboxes", f"Get {v['get']:.2f} ms   List {v['list']:.2f} ms")
            for n, v in latency.items()
        ]
        rows.append(
            ("Get, 1000 : 1", f"{latency[1000]['get'] / latency[1]['get']:.2f}")
        )
        rows.append(
            ("List, 1000 : 100", f"{latency[1000]['list'] / latency[100]['list']:.2f}")
        )
        table("Unary RPC latency (median)", rows)
        figures["watch_events_per_s"] = median(
            [asyncio.run(fan_out()) for _ in range(rounds)]
        )
        table(
            "Watch",
            [
                (
                    "10 watchers, 1,000 events",
                    f"{figures['watch_events_per_s']:.0f} deliveries/s",
                )
            ],
        )
        with registry(state / "registry") as address:
            figures["scale"] = at_scale(gateway, address, rounds)
            table(
                "A driver process",
                [(k, f"{v:.2f}") for k, v in figures["scale"].items()],
            )
            push(WORK / "demo-image", "demo", f"{address}/demo:1")
            with Process(state, gateway, address) as driver:
                result = lives(driver, gateway, f"{address}/demo:1", rounds)
        figures["lives"] = result
        rows = [
            ("create -> running", f"{result['create_to_running_s']:.2f} s"),
            ("virsh start -> running", f"{result['virsh_start_to_running_s']:.2f} s"),
            ("ratio, with the whole wall (goal 1.25)", f"{result['ratio']:.3f}"),
            *(
                (f"driver's own time in {n}", f"{v:.1f} ms (goal 60)")
                for n, v in result["driver_ms"].items()
            ),
        ]
        table(
            "A machine, against plain libvirt with the same domain XML, unboxed", rows
        )
        bar(result)
    finally:
        gateway.close()
        with contextlib.suppress(OSError):
            shutil.rmtree(state)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
