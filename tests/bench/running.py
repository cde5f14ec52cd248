"""Runs parts, each in a process of its own: one that fails, or hangs, takes no other one along."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tests.bench import history
from tests.bench.history import Run
from tests.bench.parts import BY_NAME

GRACE_S = 60.0
"""In which a part that is ended gives back what it made."""
_BECOME_SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)."""


def limit_s(part: str, rounds: int) -> float:
    """Seconds after which it is ended."""
    return BY_NAME[part].limit_s * max(1.0, rounds / 5)


def run(part: str, run_id: str, rounds: int, options: Sequence[str] = ()) -> Run:
    """Run it, and show what it prints. What came of it: never an exception of its own. Whatever it leaves
    running, machines too, is ended.
    """
    machine, begun = history.machine(), time.monotonic()
    command = [sys.executable, "-m", "tests.bench.one", part]
    with (
        nothing_left(),
        subprocess.Popen(
            [*command, "--rounds", str(rounds), *options],
            cwd=history.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        failed, last = _follow(process, limit_s(part, rounds))
    took, figures = time.monotonic() - begun, _figures(last)
    if not failed and figures is None:
        failed = "it printed no figures"
    result = {} if failed or figures is None else figures
    where = (run_id, part, history.commit(), machine, rounds, round(took, 1))
    return Run(*where, figures=result, failed=failed)


def _follow(process: subprocess.Popen[str], limit: float) -> tuple[str, str]:
    """Why it failed, or nothing; and its last line."""
    late = threading.Event()

    def end() -> None:
        late.set()
        process.send_signal(signal.SIGINT)  # its `finally` clauses run
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()

    timer = threading.Timer(limit, end)
    timer.start()
    last = ""
    try:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line
        code = process.wait()
    except KeyboardInterrupt:
        process.wait(GRACE_S)  # who interrupts us has interrupted it
        raise
    finally:
        timer.cancel()
        timer.join()
    if late.is_set():
        return f"it took longer than {limit:.0f} s", last
    return (f"it ended with {code}" if code else ""), last


def _figures(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """Whatever is begun inside, and outlives its own parent, is this process's then, and is ended."""
    before, libc = set(_children()), ctypes.CDLL(None, use_errno=True)
    libc.prctl(_BECOME_SUBREAPER, 1)
    try:
        yield
    finally:
        while left := set(_children()) - before:
            for child in left:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        libc.prctl(_BECOME_SUBREAPER, 0)


def _children() -> list[int]:
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        path = f"/proc/self/task/{thread}/children"
        with contextlib.suppress(FileNotFoundError), open(path) as file:
            found += map(int, file.read().split())  # else that thread has ended
    return found
