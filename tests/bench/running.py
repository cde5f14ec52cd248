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
REST_S = 5.0
"""In which what it has printed is read, when it has ended."""
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
    with nothing_left():
        process = subprocess.Popen(
            [*command, "--rounds", str(rounds), *options],
            cwd=history.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # who is interrupted at a terminal is this process alone
        )
        failed, last = _follow(process, limit_s(part, rounds))
    took, figures = time.monotonic() - begun, _figures(last)
    if not failed and figures is None:
        failed = "it printed no figures"
    result = {} if failed or figures is None else figures
    where = (run_id, part, history.commit(), machine, rounds, round(took, 1))
    return Run(*where, figures=result, failed=failed)


def _follow(process: subprocess.Popen[str], limit: float) -> tuple[str, str]:
    """Why it failed, or nothing; and its last line."""
    shown = _Shown(process)
    failed = ""
    try:
        code = process.wait(limit)
        failed = f"it ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        failed = f"it took longer than {limit:.0f} s"
        _end(process)
    except KeyboardInterrupt:
        _end(process)
        raise
    return failed, shown.last_line()


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)  # its `finally` clauses run
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Shown:
    """Prints what a part prints. Its end is not the end of that: what it has left running may hold
    the other end of the pipe.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._output, self._last = process.stdout, ""
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def _show(self) -> None:
        assert self._output is not None
        with self._output as lines:
            for line in lines:
                print(line, end="", flush=True)
                self._last = line

    def last_line(self) -> str:
        """Of a part that has ended: what it has printed is in the pipe."""
        self._thread.join(REST_S)
        return self._last


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
