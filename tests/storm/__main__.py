"""The storm's command line. Started by scripts/storm."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.fakes.gateway import Gateway
from tests.storm.callers import Acts, Crowd
from tests.storm.faults import HOST_FAULTS, Faults
from tests.storm.promises import Sandboxes
from tests.storm.stage import Keeper, SmallDisk, stage
from tests.storm.tally import Tally
from tests.storm.verify import Verifier, keep
from tests.storm.watchers import Watcher

CLASSES = ("driver", "qemu", "qemu-stop", "helpers", "disk")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="storm", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=60, help="how long faults and callers rage"
    )
    parser.add_argument(
        "--seed", type=int, help="of everything that is random; a new one by default"
    )
    parser.add_argument("--callers", type=int, default=3)
    parser.add_argument(
        "--without",
        default="",
        help=f"classes of faults to leave out: {', '.join(CLASSES)}",
    )
    parser.add_argument("--logs", type=Path, help="where logs go; kept anyway then")
    parser.add_argument(
        "--verbose", action="store_true", help="tell everything as it happens"
    )
    given = parser.parse_args()
    given.without = {name for name in given.without.split(",") if name}
    if unknown := given.without - set(CLASSES):
        parser.error(
            f"--without: {', '.join(sorted(unknown))}: known are {', '.join(CLASSES)}"
        )
    return given


def rage(
    keeper: Keeper, disk: SmallDisk, acts: Acts, tally: Tally, given: argparse.Namespace
) -> None:
    """From the first running machine on, until the time is over and every thread has ended; the
    host is sound again then.
    """
    ended = threading.Event()
    faults = Faults(keeper, disk, acts.sandboxes, tally, ended).threads(
        given.seed, given.without
    )
    callers = Crowd(acts, ended).threads(given.seed, given.callers)
    acts.warm_up()
    for thread in [*callers, *faults]:
        thread.start()
    ended.wait(given.seconds)
    ended.set()
    for thread in [*faults, *callers]:
        thread.join()
    disk.empty()
    if keeper.pid() is None:
        keeper.start()
    tally.note("the storm is over")


def show(tally: Tally, keeper: Keeper, logs: Path) -> None:
    """What was broken, with the history of each sandbox."""
    for violation in tally.violations:
        print(f"BROKEN: {violation.sandbox or 'host'}: {violation.what}")
    for sandbox in sorted({v.sandbox for v in tally.violations if v.sandbox}):
        print(f"--- history of {sandbox}")
        print("\n".join(tally.history(sandbox)))
    (logs / "diary").write_text(
        "".join(
            f"[{at:7.2f} s] {sandbox} {what}\n" for at, sandbox, what in tally.diary
        )
    )
    keep(keeper.state, logs)


def play(given: argparse.Namespace, logs: Path, tally: Tally) -> None:
    with stage(tally, logs) as (keeper, disk, gateway, images):
        sandboxes = Sandboxes()
        acts = Acts(keeper, gateway, sandboxes, tally, images)
        watchers = [Watcher(number, keeper, sandboxes, tally) for number in (1, 2)]
        try:
            keeper.start()
            for watcher in watchers:
                watcher.start()
            rage(keeper, disk, acts, tally, given)
            check(keeper, gateway, acts, tally, watchers, given, logs)
        except Exception as error:
            tally.broken(f"the storm itself ended with {error!r}")
        finally:
            for watcher in watchers:
                watcher.close()
            if keeper.pid() is not None:
                keeper.end(signal.SIGKILL)
            if tally.violations or given.logs:
                show(tally, keeper, logs)


def check(
    keeper: Keeper,
    gateway: Gateway,
    acts: Acts,
    tally: Tally,
    watchers: list[Watcher],
    given: argparse.Namespace,
    logs: Path,
) -> None:
    harmful = any(name not in given.without for name in HOST_FAULTS)
    Verifier(keeper, gateway, acts.sandboxes, tally, acts, harmful, logs).everything()
    for watcher in watchers:
        watcher.check()


def main() -> int:
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = (
        "0"  # programs are started while channels are open
    )
    given = arguments()
    if given.seed is None:
        given.seed = random.SystemRandom().randrange(10**6)
    print(f"storm: seed {given.seed}, {given.seconds:g} s", flush=True)
    logs = given.logs or Path(tempfile.mkdtemp(prefix="vmdriver-storm-logs-"))
    logs.mkdir(parents=True, exist_ok=True)
    tally, begun = Tally(verbose=given.verbose), time.monotonic()
    play(given, logs, tally)
    tally.table()
    ok = not tally.violations
    if ok and given.logs is None:
        shutil.rmtree(logs)
    else:
        print(f"storm: seed {given.seed}; logs are in {logs}")
    figures = {
        "ok": ok,
        "seed": given.seed,
        "seconds": given.seconds,
        "wall_s": round(time.monotonic() - begun, 1),
        "actions": tally.actions.total(),
        "kills": tally.kills.total(),
        "refusals": tally.refusals.total(),
        "broken": len(tally.violations),
        "leftovers": sum(v.what.startswith("left over") for v in tally.violations),
        "longest_s": {key: round(seconds, 2) for key, seconds in tally.longest.items()},
    }
    print(json.dumps(figures), flush=True)
    return 0 if ok else 1


sys.exit(main())
