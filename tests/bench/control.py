"""Measures the control path of a driver with 200 sandboxes: created, listed, asked for, deleted, while 1, 10 and 50 watch.
Started by scripts/bench control.

The host is a fake one, whose machines start at once; records and ledgers are on a real disk, synced as always. The driver, the
watchers and the callers are processes of their own, and so is a clock: a loop that does nothing, which tells how late this
machine lets anybody be. Each figure is of a driver process of its own; the sides take turns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc

from tests.bench.printing import table
from tests.fakes.driver import kept_on_disk
from tests.fakes.service import sandbox, served
from tests.fakes.settings import SETTINGS
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.host import garbage
from vmdriver.host.threads import Threads
from vmdriver.storage.layout import Layout

SANDBOXES, AT_A_TIME, WATCHERS = 200, 32, (1, 10, 50)
LISTS, GETS, EVENTS = 50, 20, 200
_TICK_S = 0.005
_PATIENCE_S = 120.0
_WATCH = "/openshell.compute.v1.ComputeDriver/WatchSandboxes"
_LAST = b"bench-last-"
"""In the reason of an event that ends a phase for watchers."""


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# --- processes that are measured -------------------------------------------------------------------


class Reporter:
    """Answers "begin" and "end" on stdin with what came between: how late the loop's timers were (`own`: without what
    its thread waited for a CPU, which others had), and CPU time.
    """

    def __init__(self) -> None:
        self._lags: list[float] = []
        self._own: list[float] = []
        self._cpu_s = 0.0

    async def run(self, other: Callable[[str], None] = lambda _line: None) -> None:
        """Until stdin ends. `other`: for lines that are not ours."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        ticking = asyncio.create_task(self._tick())
        while line := (await reader.readline()).decode().strip():
            if line == "begin":
                self._lags.clear()
                self._own.clear()
                self._cpu_s = _cpu_s()
                print("begun", flush=True)
            elif line == "end":
                print(json.dumps(self._found()), flush=True)
            else:
                other(line)
        ticking.cancel()

    async def _tick(self) -> None:
        waited = _waited_ms()
        while True:
            due = time.perf_counter() + _TICK_S
            await asyncio.sleep(_TICK_S)
            late, before = (time.perf_counter() - due) * 1e3, waited
            waited = _waited_ms()
            self._lags.append(late)
            self._own.append(max(0.0, late - (waited - before)))

    def _found(self) -> dict[str, float]:
        lags, own = self._lags or [0.0], self._own or [0.0]
        status = Path("/proc/self/status").read_text()
        return {
            "lag_p50_ms": percentile(lags, 0.5),
            "lag_p99_ms": percentile(lags, 0.99),
            "lag_worst_ms": max(lags),
            "lag_own_p99_ms": percentile(own, 0.99),
            "lag_own_worst_ms": max(own),
            "cpu_s": _cpu_s() - self._cpu_s,
            "rss_kib": float(status.split("VmRSS:")[1].split()[0]),
        }


def _waited_ms() -> float:
    """That this thread could have run and had no CPU, so far (proc_pid_schedstat)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e6


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def be_driver(directory: Path) -> None:
    """Serve on directory/run/d.sock; "tell N" makes so many events."""
    layout, files = Layout(directory / "state"), Threads("files", 8)
    layout.make()
    settings = dataclasses.replace(
        SETTINGS, max_sandboxes=9999, recheck_s=30.0, instance="bench"
    )
    async with (
        served(
            directory,
            settings=settings,
            watch_limit=20_000,  # on a busy machine they may be slow: that is measured, not refused
            **kept_on_disk(layout, files),
        ) as s
    ):
        telling: set[asyncio.Task[None]] = set()

        async def tell(count: int) -> None:
            for number in range(count):
                s.driver.tell("b0", "Bench", str(number))
                if number % 20 == 0:
                    await asyncio.sleep(0)
            print("told", flush=True)

        def heard(line: str) -> None:
            what, _, argument = line.partition(" ")
            if what == "tell":
                telling.add(asyncio.create_task(tell(int(argument))))
            elif what == "last":
                s.driver.tell("b0", _LAST.decode() + argument, "")

        print("ready", flush=True)
        await Reporter().run(heard)
    files.close()


async def be_clock() -> None:
    """Do nothing, and be late for it."""
    print("ready", flush=True)
    await Reporter().run()


async def be_watchers(socket: Path, count: int) -> None:
    """Watch so many times; each reads on. Writes a line whenever all have seen the same phase's last event: its name, and how
    many events they have read.
    """
    async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
        seen: dict[bytes, int] = {}
        read = 0

        async def one() -> None:
            nonlocal read
            watch: Any = channel.unary_stream(_WATCH, None, None)
            async for raw in watch(b""):
                read += 1
                if (at := raw.find(_LAST)) >= 0:
                    name = raw[at + len(_LAST) :].split(b"\x00")[0][:1]
                    seen[name] = seen.get(name, 0) + 1
                    if seen[name] == count:
                        print(f"{name.decode()} {read}", flush=True)

        tasks = [asyncio.create_task(one()) for _ in range(count)]
        print("ready", flush=True)
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


# --- who asks -----------------------------------------------------------------------------------------


class Child:
    """One of the above."""

    @classmethod
    async def begin(cls, *arguments: str) -> Child:
        child = cls()
        child.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.control", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert await child.line() == "ready"
        return child

    process: asyncio.subprocess.Process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(_PATIENCE_S):
            return (await self.process.stdout.readline()).decode().strip()

    async def say(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n".encode())
        await self.process.stdin.drain()

    async def ask(self, text: str) -> str:
        await self.say(text)
        return await self.line()

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await self.process.wait()


async def in_turn(calls: Iterable[Callable[[], Awaitable[Any]]]) -> list[float]:
    """Make them, AT_A_TIME under way; milliseconds of each."""
    times: list[float] = []
    left = iter(calls)

    async def one() -> None:
        for call in left:
            begun = time.perf_counter()
            await call()
            times.append((time.perf_counter() - begun) * 1e3)

    await asyncio.gather(*(one() for _ in range(AT_A_TIME)))
    return times


class Round:
    """One driver process's life."""

    def __init__(self, stub: Any, driver: Child, clock: Child, watchers: Child) -> None:
        self._stub, self._driver, self._clock = stub, driver, clock
        self._watchers, self._phases = watchers, 0
        self.found: dict[str, float] = {}
        self._read = 0

    async def phase(
        self, name: str, work: Callable[[], Awaitable[Any]], count: int, *, heard: bool
    ) -> None:
        """`work` is `count` of something. `heard`: it has ended when all watchers have read all of it."""
        for child in (self._driver, self._clock):
            await child.ask("begin")
        begun, mark = time.perf_counter(), chr(ord("a") + self._phases)
        self._phases += 1
        times = await work()
        if heard:
            await self._driver.say(f"last {mark}")
            said, read = (await self._watchers.line()).split()
            assert said == mark
            self.found[f"{name}_deliveries"] = int(read) - self._read
            self._read = int(read)
        took = time.perf_counter() - begun
        driver, clock = [
            json.loads(await c.ask("end")) for c in (self._driver, self._clock)
        ]
        self.found[f"{name}_per_s"] = count / took
        self.found[f"{name}_cpu_ms"] = driver["cpu_s"] * 1e3 / count
        for key, value in driver.items():
            if key.startswith("lag_"):
                self.found[f"{name}_{key}"] = value
        self.found[f"{name}_clock_p99_ms"] = clock["lag_p99_ms"]
        if times:
            self.found[f"{name}_call_p50_ms"] = percentile(times, 0.5)
            self.found[f"{name}_call_p99_ms"] = percentile(times, 0.99)

    async def rss_kib(self) -> float:
        return float(json.loads(await self._driver.ask("end"))["rss_kib"])

    async def created(self) -> list[float]:
        def create(number: int) -> Callable[[], Awaitable[Any]]:
            request = pb.CreateSandboxRequest(sandbox=sandbox(f"b{number}"))
            return lambda: self._stub.CreateSandbox(request)

        times = await in_turn([create(number) for number in range(SANDBOXES)])
        while True:
            found = await self._stub.ListSandboxes(pb.ListSandboxesRequest())
            if all(s.status.conditions[0].reason == "Running" for s in found.sandboxes):
                return times
            await asyncio.sleep(0.01)

    async def listed(self) -> list[float]:
        return await in_turn(
            [lambda: self._stub.ListSandboxes(pb.ListSandboxesRequest())] * LISTS
        )

    async def asked(self) -> list[float]:
        def get(number: int) -> Callable[[], Awaitable[Any]]:
            request = pb.GetSandboxRequest(sandbox_id=f"b{number % SANDBOXES}")
            return lambda: self._stub.GetSandbox(request)

        return await in_turn([get(number) for number in range(GETS * AT_A_TIME)])

    async def told(self) -> list[float]:
        assert await self._driver.ask(f"tell {EVENTS}") == "told"
        return []

    async def deleted(self) -> list[float]:
        def delete(number: int) -> Callable[[], Awaitable[Any]]:
            request = pb.DeleteSandboxRequest(sandbox_id=f"b{number}")
            return lambda: self._stub.DeleteSandbox(request)

        return await in_turn([delete(number) for number in range(1, SANDBOXES)])


async def one_round(directory: Path, watching: int) -> dict[str, float]:
    """Every figure, with so many watchers."""
    socket = directory / "run" / "d.sock"
    driver = await Child.begin("driver", str(directory))
    clock = await Child.begin("clock")
    watchers = await Child.begin("watchers", str(socket), str(watching))
    try:
        async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
            stub = pb_grpc.ComputeDriverStub(channel)
            await stub.ListSandboxes(pb.ListSandboxesRequest())
            measured = Round(stub, driver, clock, watchers)
            before = await measured.rss_kib()
            await measured.phase("create", measured.created, SANDBOXES, heard=True)
            after = await measured.rss_kib()
            measured.found["kib_per_sandbox"] = (after - before) / SANDBOXES
            await measured.phase("list", measured.listed, LISTS, heard=False)
            await measured.phase("get", measured.asked, GETS * AT_A_TIME, heard=False)
            await measured.phase("event", measured.told, EVENTS, heard=True)
            await measured.phase("delete", measured.deleted, SANDBOXES - 1, heard=True)
            return measured.found
    finally:
        for child in (watchers, clock, driver):
            await child.end()


# --- shown ------------------------------------------------------------------------------------------------


def show(figures: dict[str, Any]) -> None:
    """A table for each number that watch."""
    titles = {
        "create": f"{SANDBOXES} created, until all run and every watcher knows",
        "list": f"lists of {SANDBOXES}",
        "get": "gets",
        "event": "events, until every watcher has read them",
        "delete": f"{SANDBOXES - 1} deleted, until every watcher knows",
    }
    for watching, v in figures["control"].items():
        rows = [
            (
                title,
                f"{v[f'{name}_per_s']:7.0f}/s  {v[f'{name}_cpu_ms']:6.2f} ms of CPU each"
                f"  loop late: p50 {v[f'{name}_lag_p50_ms']:.1f}, p99 {v[f'{name}_lag_p99_ms']:.1f} ms"
                f" (p99 while it had a CPU: {v[f'{name}_lag_own_p99_ms']:.1f}; of an idle process: {v[f'{name}_clock_p99_ms']:.1f})",
            )
            for name, title in titles.items()
        ]
        rows.append(("memory of a sandbox", f"{v['kib_per_sandbox']:.0f} KiB"))
        table(
            f"The control path, {watching} watching, {AT_A_TIME} calls at a time",
            rows,
        )


def measure(rounds: int, _: object) -> dict[str, Any]:
    """By the number that watch: calls a second, CPU milliseconds, how late the loop was, KiB of a sandbox."""
    return {"control": asyncio.run(measured(rounds))}


async def measured(rounds: int) -> dict[str, dict[str, float]]:
    """Medians of so many rounds."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in WATCHERS}
    for _ in range(rounds):
        for count, values in found.items():
            directory = Path(tempfile.mkdtemp(prefix="vmdriver-bench-", dir="/var/tmp"))
            try:
                values.append(await one_round(directory, count))
            finally:
                shutil.rmtree(directory, ignore_errors=True)
    return {
        str(count): {
            key: statistics.median(v[key] for v in values) for key in values[0]
        }
        for count, values in found.items()
    }


def serve(what: str, *arguments: str) -> None:
    """Be one of the measured processes."""
    garbage.leave_out_what_stays()  # as vmdriver serve does
    if what == "driver":
        asyncio.run(be_driver(Path(arguments[0])))
    elif what == "watchers":
        asyncio.run(be_watchers(Path(arguments[0]), int(arguments[1])))
    else:
        asyncio.run(be_clock())


if __name__ == "__main__":
    serve(*sys.argv[1:])
