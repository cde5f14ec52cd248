"""The library that has QEMU open the memory that it maps for reading only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vmdriver.hypervisor.wall.sealing import Sealing

OPEN = """
import os, sys
file = os.open(sys.argv[1], int(sys.argv[2]))
print(os.readlink(f"/proc/self/fd/{file}"), file=sys.stderr)
import fcntl
print(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
"""


def mode_of(sealing: Sealing, sealed: Path, opened: Path, flags: int) -> int:
    """How a program, told that `sealed` is memory, has `opened` when it asked with these flags."""
    told = sealing.mapping(7_002_000, str(sealed)).environment
    command = ["/usr/bin/python3", "-Ic", OPEN, str(opened), str(flags)]
    done = subprocess.run(
        command, env=dict(told), capture_output=True, text=True, check=True
    )
    assert "cannot be preloaded" not in done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("name", ["plain", "with space", "a:b", "a,b"])
async def test_only_the_memory_is_opened_for_reading(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    sealing = Sealing(folder, tmp_path / "links")
    assert not sealing.is_possible(7_002_000)
    await sealing.prepare()
    assert sealing.problem == ""
    assert sealing.is_possible(7_002_000)
    memory, other = folder / "memory", folder / "memory2"
    for path in (memory, other):
        path.write_bytes(b"x")
    assert mode_of(sealing, memory, memory, os.O_RDWR) == os.O_RDONLY
    assert mode_of(sealing, memory, memory, os.O_RDONLY) == os.O_RDONLY
    assert mode_of(sealing, memory, other, os.O_RDWR) == os.O_RDWR
    assert mode_of(sealing, memory, other, os.O_WRONLY) == os.O_WRONLY
    made = folder / "made"
    assert mode_of(sealing, memory, made, os.O_RDWR | os.O_CREAT) == os.O_RDWR


async def test_it_is_made_once_and_a_later_driver_finds_it(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    first = Sealing(folder, tmp_path / "links")
    await first.prepare()
    made = first.library.stat()
    first.library.unlink()  # a restart of the host: links are in /run
    again = Sealing(folder, tmp_path / "links")
    await again.prepare()
    found = again.library.stat()
    assert again.library == first.library
    assert (found.st_ino, found.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert found.st_mode & 0o777 == 0o755


async def test_a_library_that_does_not_load_is_told(tmp_path: Path) -> None:
    sealing = Sealing(tmp_path, tmp_path / "links")
    sealing.library.write_bytes(b"no library at all")
    await sealing.prepare()
    assert "is not loaded" in sealing.problem
    assert not sealing.is_possible(7_002_000)
    assert sealing.is_possible(8_002_000)
