"""For how long a workload stands still while its memory or disk is kept, and how long a suspension takes against QEMU
writing the same memory by itself. Started by scripts/bench still.

Of each size, a machine that has booted and one that was resumed, idle and while it writes to its memory.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tests.bench.plain import Plain, tap
from tests.bench.printing import median, table
from tests.bench.process import Process
from tests.bench.sandbox import Sandbox, request_of
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from vmdriver.service import admin_client

SHAPES = "256:64,1024:640,4096:1024"
WRITES = """
import os, time
m = bytearray(os.urandom(1 << 20)) * {mib}
open("/tmp/touched", "w")
b, n, begun, wrote = os.urandom(1 << 18), 0, time.monotonic(), 0
while True:
    if os.path.exists("/dev/shm/write"):
        m[n : n + len(b)] = b
        n, wrote = (n + len(b)) % len(m), wrote + len(b)
        time.sleep(max(0.0, begun + wrote / {rate} - time.monotonic()))
    else:
        time.sleep(0.05)
        begun, wrote = time.monotonic(), 0
    with open("/dev/shm/wrote.new", "w") as told:
        told.write(str(wrote / max(0.001, time.monotonic() - begun)))
    os.replace("/dev/shm/wrote.new", "/dev/shm/wrote")
"""
RATE = 50 * 2**20
MOST_EACH = 20
"""Three times as many, and some more, are the most layers that a disk may have."""
Figures = dict[str, Any]
Size = tuple[int, int]
"""RAM, and what of it the workload touches, in MiB."""


def _size(text: str) -> Size:
    ram, touched = map(int, text.split(":"))
    return ram, touched


def stood_s(
    sandbox: Sandbox, name: str, *, disk_only: bool = False
) -> tuple[float, bool]:
    """In the driver's words, and whether the memory was written while it ran. The snapshot is removed again."""
    said: list[str] = []
    socket = sandbox.driver.state / "run" / "admin.sock"
    admin_client.create_snapshot(
        socket,
        sandbox.id,
        name,
        disk_only,
        lambda _r, message, _w: said.append(message),
    )
    admin_client.delete_snapshot(socket, sandbox.id, name)
    found = re.search(r"stood still for ([\d.]+) s(.*)", "\n".join(said))
    assert found is not None, said
    return float(found[1]), not found[2]


def snapshots(sandbox: Sandbox, name: str, rounds: int) -> Figures:
    taken = [stood_s(sandbox, f"{name}{n}") for n in range(rounds)]
    times = [seconds for seconds, _ in taken]
    return {
        "median": median(times),
        "worst": max(times),
        "least": min(times),
        "standing": sum(not running for _, running in taken),
        "rounds": rounds,
    }


def both_loads(sandbox: Sandbox, gateway: Gateway, name: str, rounds: int) -> Figures:
    found = {f"{name} idle": snapshots(sandbox, f"{name}-i", rounds)}
    gateway.shell(sandbox.id, "touch /dev/shm/write; sleep 1")
    found[f"{name} writing"] = snapshots(sandbox, f"{name}-w", rounds)
    rate = float(gateway.shell(sandbox.id, "cat /dev/shm/wrote")) / 2**20
    found[f"{name} writing"]["mib_s"] = rate
    gateway.shell(sandbox.id, "rm /dev/shm/write")
    return found


def begun(
    driver: Process, gateway: Gateway, image: str, name: str, ram: int, mib: int
) -> Sandbox:
    message = request_of(f"{name}{ram}-{mib}", image, ram, mib)
    program = WRITES.format(mib=mib, rate=RATE)
    message.spec.command[:] = ["/usr/bin/python3", "-c", program]
    sandbox = Sandbox(driver, gateway, message)
    gateway.wait_hello(sandbox.id)
    touched = "while [ ! -e /tmp/touched ]; do sleep 0.1; done"
    gateway.shell(sandbox.id, touched, timeout_s=300)
    return sandbox


def shape(
    driver: Process, gateway: Gateway, image: str, size: Size, rounds: int, each: int
) -> Figures:
    """Two sandboxes, since layers are merged only where no memory stands on them."""
    booted = begun(driver, gateway, image, "booted", *size)
    snapshots(booted, "warm", 1)
    found = both_loads(booted, gateway, "booted", each)
    disk = [stood_s(booted, f"d{n}", disk_only=True)[0] for n in range(each)]
    found["disk only"] = {
        "median": median(disk),
        "worst": max(disk),
        "least": min(disk),
    }
    booted.delete()
    sandbox = begun(driver, gateway, image, "resumed", *size)
    suspended, written, plain = [], [], None
    for _ in range(rounds):
        suspended.append(sandbox.suspend())
        plain = plain or Plain(sandbox)
        written.append(plain.write()[1])
        sandbox.start()
    if plain is not None:
        plain.end()
    found["suspension"] = {"median": median(suspended), "qemu": median(written)}
    found |= both_loads(sandbox, gateway, "resumed", each)
    sandbox.delete()
    return found


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--live",
        action="store_true",
        help="with live_snapshots; vm.unprivileged_userfaultfd is to be 1",
    )
    parser.add_argument("--snapshots", type=int, default=20, metavar="N")
    parser.add_argument("--shapes", default=SHAPES, help="RAM:TOUCHED,... in MiB")


def measure(rounds: int, chosen: argparse.Namespace) -> Figures:
    """`still`: for each of the shapes, and each way in which it is captured, seconds."""
    wanted = [_size(text) for text in chosen.shapes.split(",")]
    each = min(MOST_EACH, chosen.snapshots)
    gateway = Gateway()
    state = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    state.chmod(0o755)
    (state / "boot").symlink_to(WORK / "boot")
    options = ["--templates-enabled", "false", "--max-layers", "64"]
    options += ["--live-snapshots", "true"] if chosen.live else []
    try:
        with registry(state / "registry") as address, tap():
            image = f"{address}/demo:1"
            push(WORK / "demo-image", "demo", image)
            with Process(state, gateway, address, *options) as driver:
                found = {
                    f"{size[0]} / {size[1]} MiB": shape(
                        driver, gateway, image, size, rounds, each
                    )
                    for size in wanted
                }
    finally:
        gateway.close()
        shutil.rmtree(state, ignore_errors=True)
    return {"still": found}


def show(figures: Figures) -> None:
    rows = []
    for name, kinds in figures["still"].items():
        for kind, v in kinds.items():
            if kind == "suspension":
                ratio = v["median"] / v["qemu"]
                text = f"{v['median']:.2f} s = {ratio:.2f} x QEMU's write"
            else:
                text = f"{v['median'] * 1e3:.0f} ms, worst {v['worst'] * 1e3:.0f} ms, least {v['least'] * 1e3:.0f} ms"
                if v.get("standing"):
                    text += f", {v['standing']} of {v['rounds']} written standing"
            rows.append((f"{name} {kind}", text))
    table("The workload stands still (RAM / touched)", rows)
