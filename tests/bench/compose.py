"""Measures what a composed driver costs: its base's answers directly and through it, taking turns, in one run. Started by
scripts/bench compose.

The base is our own gRPC server over a fake host with 1,000 known sandboxes; base, composed driver and client are processes of
their own.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc

from tests.bench.printing import median, table
from tests.bench.process import stopped_records
from tests.fakes.composed import config
from tests.fakes.service import sandbox, served
from tests.fakes.settings import SETTINGS
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.compose.app import Composition
from vmdriver.compose.base import SERVICE
from vmdriver.extension import CallPoint, Extension
from vmdriver.host import garbage

SANDBOXES, EVENTS, NO_OPS = 1000, 3000, 10


def no_op(number: int) -> Extension:
    async def nothing(*_: Any) -> None:
        return

    body = {phase.value: nothing for phase in CallPoint}
    kind = type(f"NoOp{number}", (Extension,), {**body, "name": f"no-op-{number}"})
    made: Extension = kind()
    return made


async def base(directory: Path) -> None:
    """Serve until SIGTERM; SIGUSR1 makes EVENTS events."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    settings = dataclasses.replace(SETTINGS, max_sandboxes=9999)
    world = stopped_records(SANDBOXES)
    async with served(
        directory, world=world, settings=settings, watch_limit=10 * EVENTS
    ) as s:

        async def flood() -> None:
            for number in range(EVENTS):
                s.driver.tell("r0000", "Bench", str(number))
                if number % 20 == 0:
                    await asyncio.sleep(0)

        tasks: list[Any] = []
        loop.add_signal_handler(
            signal.SIGUSR1, lambda: tasks.append(loop.create_task(flood()))
        )
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


async def composed(directory: Path, extensions: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = config(
        directory / "run" / "d.sock",
        directory / "c" / f"{extensions}.sock",
        directory / f"s{extensions}",
    )
    await Composition(settings, [no_op(n) for n in range(extensions)]).run(stop)


async def bare(directory: Path) -> None:
    """The least that stands between: a GetSandbox is passed on as bytes, and nothing else is done. What this costs is
    gRPC's in Python and the kernel's, whatever we do.
    """
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    channel = grpc.aio.insecure_channel(
        f"unix:{directory / 'run' / 'd.sock'}",
        options=[("grpc.use_local_subchannel_pool", 1)],
    )
    get: Any = channel.unary_unary(f"{SERVICE}GetSandbox", None, None)

    async def passed_on(raw: bytes, _context: Any) -> Any:
        return await get(raw)

    handlers: Any = {"GetSandbox": grpc.unary_unary_rpc_method_handler(passed_on)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.strip("/"), handlers),)
    )
    server.add_insecure_port(f"unix:{directory / 'c' / 'bare.sock'}")
    await server.start()
    await stop.wait()
    await server.stop(0)


class Side:
    """One of the ways to the same base."""

    def __init__(self, socket: Path) -> None:
        options = [
            ("grpc.max_receive_message_length", 64 * 2**20),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self.channel = grpc.aio.insecure_channel(f"unix:{socket}", options=options)
        self.stub: Any = pb_grpc.ComputeDriverStub(self.channel)

    async def get(self) -> None:
        await self.stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="r0000"))

    async def list(self) -> None:
        await self.stub.ListSandboxes(pb.ListSandboxesRequest())

    async def validate(self) -> None:
        request = pb.ValidateSandboxCreateRequest(sandbox=sandbox("new"))
        await self.stub.ValidateSandboxCreate(request)


async def timed(call: Callable[[], Awaitable[None]]) -> float:
    begun = time.perf_counter()
    await call()
    return (time.perf_counter() - begun) * 1e3


async def in_turns(
    first: Any, second: Any, rounds: int
) -> tuple[list[float], list[float]]:
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(20):
        await first()
        await second()
    for _ in range(rounds):
        found[0].append(await timed(first))
        found[1].append(await timed(second))
    return found


async def crowd(call: Any, rounds: int) -> list[float]:
    """Milliseconds of each call while 32 are under way."""
    times: list[float] = []

    async def one() -> None:
        for _ in range(rounds):
            times.append(await timed(call))

    await asyncio.gather(*(one() for _ in range(32)))
    return times


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


async def events_a_second(side: Side, pid: int) -> float:
    stream = side.stub.WatchSandboxes(pb.WatchSandboxesRequest())
    for _ in range(SANDBOXES):
        await stream.read()
    os.kill(pid, signal.SIGUSR1)
    begun = time.perf_counter()
    for _ in range(EVENTS):
        await stream.read()
    took = time.perf_counter() - begun
    stream.cancel()
    return EVENTS / took


def cpu_ms(pid: int) -> float:
    """Of all threads of a process so far (proc_pid_schedstat)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e6


async def crowds(
    sides: Mapping[str, tuple[Side, int]], rounds: int
) -> dict[str, float]:
    """p99 of the calls of a round while 32 are under way (the median of the rounds, and the least), and CPU milliseconds
    that the process called takes for one.
    """
    p99s: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(max(rounds, 5)):
        for name, (side, pid) in sides.items():
            before = cpu_ms(pid)
            times = await crowd(side.get, 20)
            cpu[name].append((cpu_ms(pid) - before) / len(times))
            p99s[name].append(p99(times))
    return {
        **{f"crowd_p99_{name}_ms": median(values) for name, values in p99s.items()},
        **{f"crowd_p99_{name}_least_ms": min(values) for name, values in p99s.items()},
        **{f"crowd_cpu_{name}_ms": median(values) for name, values in cpu.items()},
    }


async def measured(
    directory: Path, pids: Mapping[str, int], rounds: int
) -> dict[str, float]:
    direct = Side(directory / "run" / "d.sock")
    plain, busy, nothing = (
        Side(directory / "c" / f"{n}.sock") for n in (0, NO_OPS, "bare")
    )
    result: dict[str, float] = {}
    for name in ("get", "list"):
        many = rounds * 40 if name == "get" else rounds * 4
        a, b = await in_turns(getattr(direct, name), getattr(plain, name), many)
        result[f"{name}_direct_ms"], result[f"{name}_composed_ms"] = (
            median(a),
            median(b),
        )
    a, b = await in_turns(direct.validate, busy.validate, rounds * 20)
    c, d = await in_turns(direct.validate, plain.validate, rounds * 20)
    result["validate_direct_ms"] = median(a + c)
    result["validate_composed_ms"] = median(d)
    result["validate_10_extensions_ms"] = median(b)
    crowd_of = {"direct": direct, "composed": plain, "bare": nothing}
    result |= await crowds({n: (s, pids[n]) for n, s in crowd_of.items()}, rounds)
    rates: dict[str, list[float]] = {"direct": [], "composed": []}
    for _ in range(rounds):
        rates["direct"].append(await events_a_second(direct, pids["direct"]))
        rates["composed"].append(await events_a_second(plain, pids["direct"]))
    result["events_direct"], result["events_composed"] = (
        median(rates["direct"]),
        median(rates["composed"]),
    )
    for side in (direct, plain, busy, nothing):
        await side.channel.close()
    return result


def show(v: dict[str, float]) -> None:
    def added(name: str, key: str = "composed") -> str:
        direct, through = v[f"{name}_direct_ms"], v[f"{name}_{key}_ms"]
        return f"{direct:.2f} ms directly, {through:.2f} ms through it: + {through - direct:.2f} ms"

    table(
        "A composed driver, against its base directly (1,000 sandboxes)",
        [
            ("GetSandbox", added("get")),
            ("ListSandboxes", added("list")),
            ("ValidateSandboxCreate", added("validate")),
            ("the same, 10 no-op extensions", added("validate", "10_extensions")),
            ("GetSandbox p99, 32 at a time", added("crowd_p99")),
            (
                "the same, the round that others disturbed least",
                ", ".join(
                    f"{said} {v[f'crowd_p99_{name}_least_ms']:.2f} ms"
                    for name, said in (
                        ("direct", "directly"),
                        ("composed", "through it"),
                        ("bare", "passed on"),
                    )
                ),
            ),
            (
                "the same, passed on and nothing else",
                f"{added('crowd_p99', 'bare')}; CPU of a call: base {v['crowd_cpu_direct_ms']:.2f}, "
                f"composed {v['crowd_cpu_composed_ms']:.2f}, passed on {v['crowd_cpu_bare_ms']:.2f} ms",
            ),
            (
                "events to a watcher",
                f"{v['events_composed']:.0f}/s = {v['events_composed'] / v['events_direct']:.2f} of {v['events_direct']:.0f}/s",
            ),
            ("memory of the composed driver", f"{v['rss_mib']:.0f} MiB"),
        ],
    )


def measure(rounds: int, _: object) -> dict[str, Any]:
    """Milliseconds directly and through it, events a second, `rss_mib`."""
    directory = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    sockets = [directory / "run" / "d.sock"]
    sockets += [directory / "c" / f"{name}.sock" for name in (0, NO_OPS, "bare")]
    sides = [["base"], ["composed", "0"], ["composed", str(NO_OPS)], ["bare"]]
    (directory / "c").mkdir(mode=0o700)
    program = [sys.executable, "-m", "tests.bench.compose", str(directory)]
    running = [subprocess.Popen([*program, *side]) for side in sides]
    try:
        deadline = time.monotonic() + 60
        while not all(path.exists() for path in sockets):
            if time.monotonic() > deadline:
                raise RuntimeError("the drivers did not start")
            time.sleep(0.1)
        time.sleep(2)
        pids = {
            name: running[index].pid
            for name, index in (("direct", 0), ("composed", 1), ("bare", 3))
        }
        garbage.leave_out_what_stays()  # the caller's own pauses are nobody's latency
        figures = asyncio.run(measured(directory, pids, rounds))
        status = Path(f"/proc/{running[1].pid}/status").read_text()
        figures["rss_mib"] = int(status.split("VmRSS:")[1].split()[0]) / 1024
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(20)
        shutil.rmtree(directory, ignore_errors=True)
    return figures


def serve(directory: Path, side: str, *extensions: int) -> None:
    """Be one of them, until SIGTERM."""
    garbage.leave_out_what_stays()  # as vmdriver serve and compose do
    sides: dict[str, Any] = {"base": base, "bare": bare, "composed": composed}
    asyncio.run(sides[side](directory, *extensions))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
