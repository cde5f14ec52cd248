"""What QEMUs say takes little of the disk, and does not outlive their sandboxes for long."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from vmdriver.hypervisor import logs

DAY_S = 24 * 3600


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("log/qemu", "etc/qemu"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def test_a_qemu_that_does_not_stop_talking_does_not_fill_the_disk(root: Path) -> None:
    path = root / "log" / "qemu" / "m.log"
    with path.open("ab", buffering=0) as standard_error:
        for _ in range(3):
            for _ in range(8):
                standard_error.write(b"spam" * 2**18)
            logs.bound(f"qemu:///embed?root={root}")
            assert path.stat().st_size < 2**20
        standard_error.write(b"the end")
    assert path.read_bytes().endswith(b"spamthe end")


def test_the_log_of_a_machine_that_is_gone_goes_a_day_later(root: Path) -> None:
    folder = root / "log" / "qemu"
    long_ago = time.time() - DAY_S - 60
    for name in ("gone", "quiet", "just-gone"):
        (folder / f"{name}.log").write_text("starting up\n")
    for name in ("gone", "quiet"):
        os.utime(folder / f"{name}.log", (long_ago, long_ago))
    (root / "etc" / "qemu" / "quiet.xml").touch()
    logs.bound(f"qemu:///embed?root={root}")
    assert sorted(path.stem for path in folder.iterdir()) == ["just-gone", "quiet"]


def test_a_daemons_logs_are_its_own_to_bound(tmp_path: Path) -> None:
    logs.bound("qemu:///system")
    assert not list(tmp_path.iterdir())
