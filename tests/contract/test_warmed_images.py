"""What of an image is read before a template is captured (images/guest/warm.c)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.contract.guest_programs import compiled

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: devices")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("warm") / "warm", "warm.c")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for folder in ("usr/bin", "usr/sbin", "usr/lib/x86_64-linux-gnu"):
        (root / folder).mkdir(parents=True)
    for name in ("bin", "sbin", "lib"):
        (root / name).symlink_to(f"usr/{name}")
    return root


def read(program: Path, root: Path) -> int:
    """Bytes; it ends soon, whatever is there."""
    done = subprocess.run(
        [program, root], capture_output=True, text=True, timeout=10, check=True
    )
    return int(done.stdout)


def test_what_most_run_first_is_read_through_the_images_own_links(
    program: Path, root: Path
) -> None:
    assert read(program, root) == 0
    (root / "usr/bin/dash").write_bytes(b"d" * 1000)
    (root / "usr/bin/sh").symlink_to("/usr/bin/dash")
    (root / "usr/bin/bash").write_bytes(b"b" * 200)
    library = root / "usr/lib/x86_64-linux-gnu"
    (library / "libc.so.6").write_bytes(b"c" * 30)
    (library / "libother.so.1").write_bytes(b"o" * 4)
    assert read(program, root) == 1230


def test_nothing_else_is_opened_waited_for_or_read_without_bound(
    program: Path, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 50)
    there = root / "usr/bin"
    (there / "sh").symlink_to("../../../outside")
    os.mkfifo(there / "bash")
    os.mknod(there / "env", 0o666 | 0o020000, os.makedev(1, 5))  # endless zeros
    (there / "nsenter").symlink_to("nsenter")
    (there / "python3").mkdir()
    with (root / "usr/sbin/ip").open("wb") as file:
        file.truncate(2**40)
    (root / "usr/sbin/nft").symlink_to("/proc/self/exe")
    assert read(program, root) == 0


def test_no_more_is_read_in_all_than_its_share(program: Path, root: Path) -> None:
    for name in ("sh", "bash", "env", "nsenter", "python3"):
        with (root / "usr/bin" / name).open("wb") as file:
            file.truncate(16 << 20)
    assert 48 << 20 <= read(program, root) < (48 << 20) + (64 << 10)
