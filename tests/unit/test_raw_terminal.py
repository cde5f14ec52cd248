"""A terminal that was raw is as it was, whatever ended who had it."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from vmdriver.host.raw_terminal import raw

ROOT = Path(__file__).parents[2]
HOLDS = """
import sys, time
from vmdriver.host.raw_terminal import raw
with raw(0):
    print("raw", flush=True)
    if sys.argv[1] == "raises":
        raise RuntimeError
    if sys.argv[1] == "ends":
        sys.exit(3)
    while True:
        time.sleep(0.05)
"""
"""It never waits for long: of a signal just before a call that waits, Python hears after that call."""


@pytest.fixture
def terminal() -> Iterator[int]:
    ours, theirs = pty.openpty()
    yield theirs
    os.close(ours)
    os.close(theirs)


def is_raw(terminal: int) -> bool:
    return not termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ECHO)


@contextlib.contextmanager
def holder(terminal: int, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """It is ended at the end: a test that fails leaves no program of its own."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, how],
        cwd=ROOT,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"raw\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])  # fmt: skip
def test_it_is_restored_when_its_holder_is_killed(
    terminal: int, number: signal.Signals
) -> None:
    before = termios.tcgetattr(terminal)
    with holder(terminal, "waits") as process:
        assert is_raw(terminal)
        process.send_signal(number)
        process.wait(60)
        until(lambda: termios.tcgetattr(terminal) == before, "it is as it was")


def test_it_is_restored_when_the_whole_group_is_killed(terminal: int) -> None:
    """As a shell does it to a job; what waits for our end is in the group, and heeds no such signal."""
    before = termios.tcgetattr(terminal)
    with holder(terminal, "waits") as process:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
        until(lambda: termios.tcgetattr(terminal) == before, "it is as it was")


@pytest.mark.parametrize("how", ["raises", "ends"])
def test_it_is_restored_at_each_end(terminal: int, how: str) -> None:
    before = termios.tcgetattr(terminal)
    with holder(terminal, how) as process:
        assert process.wait(60) == {"raises": 1, "ends": 3}[how]
        assert termios.tcgetattr(terminal) == before


def test_what_is_no_terminal_is_an_error(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("wb") as file,
        pytest.raises(OSError, match="it is no terminal"),
        raw(file.fileno()),
    ):
        pass
