"""What the bench says of a process's memory, against a process that is known."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import density
from tests.bench.resident import (
    CODE,
    GUEST,
    PROGRAMS,
    causes,
    descendants,
    resident,
    written_to,
)

MIB = 64
PROGRAM = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
memory = mmap.mmap(descriptor, 64 << 20, access=mmap.ACCESS_COPY)
unused = mmap.mmap(-1, 64 << 20)
code = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
code[: 4 << 20] = bytes(4 << 20)
for page in (3, 5, 2047):
    memory[page * 4096] = 1
for page in range(2048):
    memory[page * 4096]
if not os.fork():
    for page in range(2048):
        memory[page * 4096]
    print(os.getpid(), flush=True)
    sys.stdin.read()
    os._exit(0)
sys.stdin.read()
"""


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A process with memory like a fork's, and its child."""
    path = tmp_path / "memory"
    path.write_bytes(b"x" * (8 << 20))
    with path.open("r+b") as file:
        file.truncate(MIB << 20)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())


def test_memory_is_told_apart_by_what_it_is(pids: tuple[int, int]) -> None:
    """Both processes have the same: each one's share is half of it."""
    found = resident(pids[0], MIB)
    assert found.pss[GUEST] == pytest.approx(4, abs=0.1)
    assert found.pss[CODE] == pytest.approx(2, abs=0.1)
    assert found.pss[PROGRAMS] > 0
    assert found.own[GUEST] == found.own[CODE] == pytest.approx(0, abs=0.1)
    without = sum(found.pss.values()) - found.pss[CODE]
    assert found.without_code() == pytest.approx(without)


def test_what_was_written_to_is_no_more_the_files(pids: tuple[int, int]) -> None:
    assert written_to(pids[0], MIB) == {3, 5, 2047}


def test_all_that_a_process_has_begun_are_its_descendants(
    pids: tuple[int, int],
) -> None:
    assert list(descendants(pids[0])) == [pids[1]]


def test_pages_are_counted_once_by_the_first_cause_that_fits() -> None:
    anonymous, cached, free = 1 << 12, 1 << 5, 1 << 10
    flags = [anonymous | cached, cached, free, 0]
    found = causes({0, 1, 2, 3, 99}, flags)
    page = 4096 / 2**20
    assert found == {
        "processes": page,
        "files": page,
        "free again": page,
        "kernel, the rest": 2 * page,
    }


def test_what_all_have_in_common_is_counted_once() -> None:
    each = {"own": 50.0, "code": 20.0, "helpers": 1.0, "driver": 2.0, "kernel": 7.0}
    found = {"each_mib": each, "shared_mib": 100.0}
    assert density.fitting(found, 700, code=True) == 10
    assert density.fitting(found, 700, code=False) == 15
