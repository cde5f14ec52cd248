"""How many idle sandboxes fit: what each takes of the host's memory, cold and forked, by what it is; and what a fork writes to
in its first minute, by cause.

Started by scripts/bench. First one driver's machines that have booted, then another one's forks of one template: --most of
each (40 for the documents; none is begun after LIMIT_S), looked at when there are 1, 8 and all of them. PSS counts once in
all what several share: a fork's part of its template falls with their number. Memory figures bear it when others use this
machine; only what the host's kernel takes is of the whole host.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.forks import drivers
from tests.bench.printing import median, table
from tests.bench.process import Process
from tests.bench.resident import (
    CODE,
    FLAGS,
    HEAP,
    PAGE,
    PARTS,
    Resident,
    causes,
    descendants,
    kernel_mib,
    pss_mib,
    resident,
    written_to,
)
from tests.bench.sandbox import Sandbox, request_of, wait_template
from tests.fakes.gateway import Gateway
from tests.fakes.registry import push, registry
from tests.fakes.serve import WORK
from vmdriver._proto import compute_driver_pb2 as pb

COMPARED = 8
"""So many of each kind are there when one is compared with the other."""
LIMIT_S = 120.0
"""After which no more of a kind are begun, beyond those that are compared: on a busy machine there are fewer."""
MOMENTS_S = (1, 5, 15, 30, 60)
HOST_MIB = 16 * 1024
_SETTLED_S = 10.0
_AT_A_TIME = 4
"""So many are begun at once: 40 boots one after the other take minutes."""
_NOMINAL = ("--max-committed-mem-mib", str(2**20))
"""What is measured is memory that is used: what guests could use is more than this host has."""


def first_minute(sandbox: Sandbox, gateway: Gateway, memory_mib: int) -> dict[str, Any]:
    """MiB that it has written to, by the second; at the end by cause."""
    begun, pid = time.monotonic(), sandbox.pid()
    seconds, pages = {}, set[int]()
    for moment in MOMENTS_S:
        time.sleep(max(0.0, begun + moment - time.monotonic()))
        pages = written_to(pid, memory_mib)
        seconds[moment] = len(pages) * PAGE / 2**20
    gateway.wait_hello(sandbox.id)
    words = ["/usr/bin/python3", "-c", FLAGS, str(memory_mib * 2**20 // PAGE)]
    done = gateway.run(sandbox.id, *words, timeout_s=120)
    flags = [int(line, 16) for line in done.stdout.split()]
    return {"mib": seconds, "causes": causes(pages, flags)}


@dataclass
class Crowd:
    """Idle machines of one driver's, one more after the other."""

    kind: str
    driver: Process
    gateway: Gateway
    image: str
    memory_mib: int
    sandboxes: list[Sandbox] = field(default_factory=list)

    def grow_to(self, count: int, until: float = math.inf) -> None:
        """None is begun after `until` (monotonic seconds)."""
        numbers = range(len(self.sandboxes), count)
        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            found = pool.map(lambda number: self._begun(number, until), numbers)
            self.sandboxes += [one for one in found if one is not None]
        print(f"  {len(self.sandboxes)} {self.kind}", file=sys.stderr, flush=True)
        time.sleep(_SETTLED_S)

    def _begun(self, number: int, until: float) -> Sandbox | None:
        if time.monotonic() > until:
            return None
        message = request_of(f"{self.kind}{number}", self.image, self.memory_mib, 0)
        sandbox = Sandbox(self.driver, self.gateway, message)
        self.gateway.wait_hello(sandbox.id)
        return sandbox

    def looked_at(self) -> list[Resident]:
        return [resident(each.pid(), self.memory_mib) for each in self.sandboxes]

    def helpers_mib(self) -> float:
        """Of what else runs for them, without the driver."""
        machines = {each.pid() for each in self.sandboxes}
        total = 0.0
        for pid in set(descendants(self.driver.process.pid)) - machines:
            with contextlib.suppress(OSError):  # it has ended
                total += pss_mib(pid)
        return total

    def end(self) -> None:
        calls = [
            self.driver.stub.DeleteSandbox.future(
                pb.DeleteSandboxRequest(sandbox_id=each.id)
            )
            for each in self.sandboxes
        ]
        for call in calls:
            call.result()
        self.sandboxes.clear()


def measured(crowd: Crowd, counts: tuple[int, ...]) -> dict[str, Any]:
    """`at`: by how many there are, medians of the parts; of all of them what each one takes."""
    driver, kernel = pss_mib(crowd.driver.process.pid), kernel_mib()
    at: dict[str, dict[str, float]] = {}
    for wanted in counts:
        until = time.monotonic() + LIMIT_S if wanted > COMPARED else math.inf
        crowd.grow_to(wanted, until)
        seen, count = crowd.looked_at(), len(crowd.sandboxes)
        at[str(count)] = {part: median([s.pss[part] for s in seen]) for part in PARTS}
    pss = sum(sum(s.pss.values()) for s in seen)
    own = sum(sum(s.own.values()) for s in seen)
    each = {
        "own": own / count,
        "code": sum(s.own[CODE] for s in seen) / count,
        "helpers": crowd.helpers_mib() / count,
        "driver": (pss_mib(crowd.driver.process.pid) - driver) / count,
        "kernel": (kernel_mib() - kernel) / count,
    }
    crowd.end()
    return {"count": count, "at": at, "shared_mib": pss - own, "each_mib": each}


def waiting_mib(driver: Process, memory_mib: int) -> dict[str, float]:
    """PSS by part of a machine of the warm pool, which stands still before its first instruction: what of QEMU's heap TCG
    needs for the code that it translates, it has not yet.
    """
    wait_template(driver, 1)
    folder = driver.state / "libvirt" / "run" / "qemu"
    newest = max(folder.glob("vmdriver-*.pid"), key=lambda path: path.stat().st_mtime)
    return dict(resident(int(newest.read_text()), memory_mib).pss)


def fitting(found: dict[str, Any], room_mib: float, *, code: bool) -> int:
    """How many would fit into so much memory, with what all have in common once; `code`: with what TCG has translated."""
    each = dict(found["each_mib"])
    translated = each.pop("code")
    one = sum(each.values()) - (0.0 if code else translated)
    return int((room_mib - found["shared_mib"]) / one)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", type=int, default=512, help="MiB of each guest")
    parser.add_argument("--most", type=int, default=COMPARED, help="of each kind")


def measure(_rounds: int, chosen: argparse.Namespace) -> dict[str, Any]:
    """`density`: of both kinds MiB by part and number, and how many fit into 16 GiB; a fork's first minute; a machine that
    waits. `forks`: PSS with translated code, as it was called first.
    """
    folder = Path(tempfile.mkdtemp(prefix="vmdriver-bench-"))
    folder.chmod(0o755)
    gateway, memory = Gateway(), chosen.memory
    most = max(COMPARED, chosen.most)
    counts = tuple(sorted({1, COMPARED, most}))
    found: dict[str, Any] = {"memory_mib": memory, "compared": COMPARED}
    try:
        with registry(folder / "registry") as address:
            image = f"{address}/demo:1"
            push(WORK / "demo-image", "demo", image)
            for kind in ("cold", "fork"):
                with drivers(folder, gateway, address, [kind], *_NOMINAL) as running:
                    crowd = Crowd(kind, running[kind], gateway, image, memory)
                    crowd.grow_to(1)  # what the first one needs, all do
                    if kind == "fork":
                        wait_template(crowd.driver, 0)
                        crowd.end()
                        message = request_of("minute", image, memory, 0)
                        one = Sandbox(crowd.driver, gateway, message)
                        found["first_minute"] = first_minute(one, gateway, memory)
                        one.delete()
                    crowd.end()
                    found[kind] = measured(crowd, counts)
            more = (*_NOMINAL, "--warm-pool", "1")
            with drivers(folder, gateway, address, ["fork"], *more) as running:
                found["waiting"] = waiting_mib(running["fork"], memory)
    finally:
        gateway.close()
        shutil.rmtree(folder, ignore_errors=True)
    at = {kind: found[kind]["at"][str(COMPARED)] for kind in ("cold", "fork")}
    for kind, parts in at.items():
        found[f"{kind}_mib"] = sum(parts.values()) - parts[CODE]
        notes = parts[HEAP] - found["waiting"][HEAP]
        found[f"{kind}_untranslated_mib"] = found[f"{kind}_mib"] - notes
        for name, code in (("fit", True), ("fit_without_code", False)):
            found[kind][name] = fitting(found[kind], HOST_MIB, code=code)
    first = {f"{kind}_pss": sum(parts.values()) for kind, parts in at.items()}
    return {"density": found, "forks": first}


def show(figures: dict[str, Any]) -> None:
    found = figures["density"]
    for kind in ("cold", "fork"):
        at = found[kind]["at"]
        rows = [
            (part, "  ".join(f"{of[part]:6.1f} MiB" for of in at.values()))
            for part in PARTS
        ]
        counts, size = ", ".join(at), found["memory_mib"]
        table(f"PSS of one of {counts} idle {size} MiB sandboxes ({kind})", rows)
    cold, fork = found["cold_mib"], found["fork_mib"]
    print(
        f"  without translated code, {found['compared']} of each: "
        f"{fork:.1f} of {cold:.1f} MiB = {fork / cold:.2f}"
    )
    cold, fork = (found[f"{kind}_untranslated_mib"] for kind in ("cold", "fork"))
    print(
        "  and without what TCG notes about it (their heap as one's that waits): "
        f"{fork:.1f} of {cold:.1f} MiB = {fork / cold:.2f}"
    )
    rows = [(part, f"{found['waiting'][part]:6.1f} MiB") for part in PARTS]
    rows.append(("all of it", f"{sum(found['waiting'].values()):6.1f} MiB"))
    table("PSS of a machine that waits to be somebody's", rows)
    minute = found["first_minute"]
    at = "  ".join(f"{s} s: {mib:.1f}" for s, mib in minute["mib"].items())
    rows = [(name, f"{mib:5.1f} MiB") for name, mib in minute["causes"].items()]
    table(f"What a fork writes to in its first minute (MiB at {at})", rows)
    for kind in ("cold", "fork"):
        all_ = found[kind]
        rows = [(name, f"{mib:6.1f} MiB") for name, mib in all_["each_mib"].items()]
        rows.append(("in common", f"{all_['shared_mib']:6.1f} MiB"))
        without = f"{all_['fit_without_code']} without translated code"
        rows.append(("in 16 GiB", f"{all_['fit']}; {without}"))
        table(f"What each of {all_['count']} takes ({kind})", rows)
