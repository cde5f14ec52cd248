"""What each part of the wall around a machine adds to its start, by itself. Started by scripts/bench.

What it adds in all is scripts/bench driver's ratio. Here each part is made and taken away, in turn with what there would be
without it; medians of 5 rounds or more, in milliseconds.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tests.bench.printing import table
from vmdriver.host.threads import Threads
from vmdriver.hypervisor.wall.box import Box
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.lifecycle.launch.addresses import AddressPool
from vmdriver.lifecycle.ports.host import Ownership, Taken
from vmdriver.model.plan import NetworkPlan
from vmdriver.network.host_network import HostNetwork
from vmdriver.storage.layers.machine_users import MachineUsers
from vmdriver.storage.layout import Layout

UID, GID = 2_147_000_001, 2_147_000_000
POOL, MARK = "10.199.0.0/24", "vmdriver/bench/wall"
FILTER = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


async def timed(effect: Awaitable[object]) -> float:
    begun = time.perf_counter()
    await effect
    return (time.perf_counter() - begun) * 1e3


async def network(folder: Path, threads: Threads, rounds: int) -> dict[str, float]:
    """Tap and rules: in the host's own namespace, and in one of the machine's."""
    owner = Ownership(UID, GID)
    host = HostNetwork("bench", owner, threads, POOL, folder / "forwarding")
    lease = AddressPool("bench", POOL).take("wall", Taken())
    bare = NetworkPlan(lease=lease, gateway_port=1, egress="private-denied", pool=POOL)
    walled = bare.model_copy(update={"namespace": lease.tap, "max_connections": 4096})
    took: dict[str, list[float]] = {}

    async def make(plan: NetworkPlan) -> None:
        await host.make_tap(plan, MARK)
        await host.load_rules(plan, MARK)

    async def remove() -> None:
        await host.remove_tap(lease.tap, MARK)
        await host.remove_rules(lease.tap)

    try:
        for _ in range(rounds):
            for name, plan in (("in the host's", bare), ("of its own", walled)):
                made = took.setdefault(f"namespace {name}: made", [])
                gone = took.setdefault(f"namespace {name}: removed", [])
                made.append(await timed(make(plan)))
                gone.append(await timed(remove()))
    finally:
        await remove()
    return {name: statistics.median(values) for name, values in took.items()}


async def user(folder: Path, threads: Threads, rounds: int) -> dict[str, float]:
    """A number claimed, and given back with what belongs to it."""
    layout = Layout(folder)
    layout.make()
    users = MachineUsers(layout, threads)
    claims, clears = [], []
    for _ in range(rounds):
        claims.append(await timed(users.claim(UID)))
        clears.append(await timed(users.clear(UID, "wall")))
    return {
        "user: claimed": statistics.median(claims),
        "user: given back": statistics.median(clears),
    }


def box(folder: Path, rounds: int) -> dict[str, float]:
    """A program that ends at once, by itself and as a machine's QEMU."""
    folder.chmod(0o711)
    true = "/usr/bin/true"
    program = Boxes(folder).make("wall", true, Box(memory_mib=64, file_bytes=2**20))
    become = ["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups"]
    words = ["-name", "guest=wall,debug-threads=on", "-sandbox", FILTER]

    def run(emulator: str) -> float:
        begun = time.perf_counter()
        subprocess.run([*become, emulator, *words], check=True)
        return (time.perf_counter() - begun) * 1e3

    pairs = [(run(true), run(program)) for _ in range(rounds)]
    return {
        "box: without it": statistics.median(a for a, _ in pairs),
        "box: with it": statistics.median(b for _, b in pairs),
    }


async def measured(rounds: int) -> dict[str, float]:
    threads = Threads("bench", 4)
    measures: tuple[
        Callable[[Path, Threads, int], Awaitable[dict[str, float]]], ...
    ] = (user, network)
    figures: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for part in measures:
                figures |= await part(folder, threads, rounds)
            figures |= await threads.run(box, folder, rounds)
    finally:
        threads.close()
    return figures


def measure(rounds: int, _: object) -> dict[str, Any]:
    """`wall_ms`: part -> milliseconds."""
    return {"wall_ms": asyncio.run(measured(rounds))}


def show(figures: dict[str, Any]) -> None:
    rows = [(name, f"{value:7.1f} ms") for name, value in figures["wall_ms"].items()]
    table("Parts of the wall, by themselves", rows)
