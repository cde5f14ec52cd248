"""Eight forks, eight stops that keep memory, eight resumes at once, against one of each in the same run.

One driver, one template. Beside the clock stands the CPU time of the driver, its machines and whatever either has begun:
what that alone takes on all cores is the least that eight can take, and the rest is what somebody waited for. The steps
say where. No round is begun after LIMIT_S, so that it ends in time on a busy machine too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.forks import steps_of
from tests.bench.printing import median, table
from tests.bench.process import Process
from tests.bench.sandbox import request_of, wait_reason, wait_template
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from vmdriver._proto import compute_driver_pb2 as pb

AT_ONCE = 8
MIB = 512
LIMIT_S = 100.0
KINDS = ("fork", "stop", "resume")
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(driver: Process) -> float:
    """Of the driver, its machines, and all that they have begun and seen the end of."""
    own = str(driver.process.pid)
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, tail = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        fields = tail.split()
        if head.split(" ", 1)[0] == own or fields[1] == own:
            total += sum(map(int, fields[11:15]))
    return total / _TICKS


@dataclass
class Taken:
    """Of one kind, with one or several at once: each round's."""

    clock_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    steps_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def figures(self) -> dict[str, Any]:
        steps = {name: median(values) for name, values in self.steps_ms.items()}
        return {
            "s": median(self.clock_s),
            "least_s": min(self.clock_s),
            "cpu_s": median(self.cpu_s),
            "steps_ms": steps,
        }


@dataclass
class Bench:
    driver: Process
    gateway: Gateway
    image: str
    found: dict[str, Taken] = field(default_factory=lambda: defaultdict(Taken))

    @contextmanager
    def timed(self, key: str) -> Iterator[None]:
        cpu, begun = cpu_s(self.driver), time.perf_counter()
        yield
        taken = self.found[key]
        taken.clock_s.append(time.perf_counter() - begun)
        taken.cpu_s.append(cpu_s(self.driver) - cpu)
        print(f"  {key}: {taken.clock_s[-1]:.2f} s", file=sys.stderr, flush=True)

    def life(self, name: str, count: int) -> None:
        """As many are forked, stopped and resumed at once, and deleted."""
        some = [request_of(f"{name}-{n}", self.image, MIB, 0) for n in range(count)]
        stub, key = self.driver.stub, "one" if count == 1 else "eight"
        create = [pb.CreateSandboxRequest(sandbox=message) for message in some]
        stop = [pb.StopSandboxRequest(sandbox_id=message.id) for message in some]
        start = [pb.StartSandboxRequest(sandbox_id=message.id) for message in some]
        delete = [pb.DeleteSandboxRequest(sandbox_id=message.id) for message in some]
        with self.timed(f"{key} fork"):
            together(stub.CreateSandbox, create)
            self._wait("Running", some)
        for message in some:
            self.gateway.wait_hello(message.id)
        self._note_steps(f"{key} fork", some)
        with self.timed(f"{key} stop"):
            together(stub.StopSandbox, stop)
        with self.timed(f"{key} resume"):
            together(stub.StartSandbox, start)
            self._wait("Running", some)
        self._note_steps(f"{key} resume", some)
        together(stub.DeleteSandbox, delete)

    def _wait(self, reason: str, some: Sequence[pb.DriverSandbox]) -> None:
        for message in some:
            wait_reason(self.driver.stub, message.id, reason)

    def _note_steps(self, key: str, some: Sequence[pb.DriverSandbox]) -> None:
        """Each one's; of several their mean."""
        sums: dict[str, float] = defaultdict(float)
        for message in some:
            for name, value in steps_of(self.driver, message.id).items():
                sums[name] += value
        for name, value in sums.items():
            self.found[key].steps_ms[name].append(value / len(some))


def together(call: Any, requests: Sequence[Any]) -> None:
    """All asked at once, and answered."""
    for answer in [call.future(request) for request in requests]:
        answer.result()


def measured(rounds: int, folder: Path, gateway: Gateway) -> dict[str, Any]:
    state, begun = folder / "state", time.monotonic()
    state.mkdir(mode=0o755)
    (state / "boot").symlink_to(WORK / "boot")
    with (
        registry(folder / "registry") as address,
        Process(state, gateway, address, "--templates-enabled", "true") as driver,
    ):
        image = f"{address}/demo:1"
        push(WORK / "demo-image", "demo", image)
        bench = Bench(driver, gateway, image)
        bench.life("first", 1)
        wait_template(driver, 0)
        bench.life("warm", 1)  # what is found out once, is
        bench.found.clear()
        done = 0
        while done < rounds and (not done or time.monotonic() - begun < LIMIT_S):
            bench.life(f"one{done}", 1)
            bench.life(f"eight{done}", AT_ONCE)
            done += 1
    figures = {key: taken.figures() for key, taken in bench.found.items()}
    return {"cores": os.cpu_count() or 1, "rounds": done, "load": load(), **figures}


def load() -> float:
    """Of this machine, in the last 5 minutes, whoever's it is."""
    return os.getloadavg()[1]


def measure(rounds: int, _chosen: argparse.Namespace) -> dict[str, Any]:
    """`at_once`: for "one fork", "eight fork" and the like, seconds by the clock and of CPU time. `fork_steps`, `forks`: of
    eight forks under the names that other parts gave them first.
    """
    folder = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    folder.chmod(0o755)
    gateway = Gateway()
    try:
        found = measured(rounds, folder, gateway)
    finally:
        gateway.close()
        shutil.rmtree(folder, ignore_errors=True)
    eight = found["eight fork"]
    first = {f"eight_{key}": eight[key] for key in ("s", "least_s", "steps_ms")}
    return {"at_once": found, "fork_steps": first, "forks": {"eight_s": eight["s"]}}


def show(figures: dict[str, Any]) -> None:
    found = figures["at_once"]
    cores = found["cores"]
    for kind in KINDS:
        one, eight = found[f"one {kind}"], found[f"eight {kind}"]
        least = eight["cpu_s"] / cores
        rows = [
            ("one", f"{one['s']:.2f} s, CPU {one['cpu_s']:.2f} s"),
            (
                "eight",
                f"{eight['s']:.2f} s = {eight['s'] / one['s']:.1f} x one, CPU {eight['cpu_s']:.2f} s",
            ),
            (
                "its CPU time",
                f"{least:.2f} s on {cores} cores = {least / one['s']:.1f} x one",
            ),
        ]
        table(f"{kind}s, one and {AT_ONCE} at once ({found['rounds']} rounds)", rows)
        steps = [
            (name, f"{ms:8.1f} ms, of one {one['steps_ms'].get(name, 0.0):8.1f} ms")
            for name, ms in eight["steps_ms"].items()
        ]
        if steps:
            table(f"  Where one of {AT_ONCE} was, in the mean", steps)
    print(f"  load of this machine (5 minutes): {found['load']:.1f}")
