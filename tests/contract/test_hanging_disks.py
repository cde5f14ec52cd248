"""Where a disk of the host's hangs, `vmdriver doctor` says so and ends: it is asked just then."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.hanging_disk import NO_FUSE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="something is mounted")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may pass: pytest's are closed."""
    with tempfile.TemporaryDirectory(prefix="vmdh") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--host-mounts={}/sub"], 1, "host folder {}/sub: {}/sub does not answer"),
        (["--state-dir={}/sub/state"], 1, "state_dir: {}/sub/state does not answer"),
        (["--supervisor-path={}/sub/x"], 1, "supervisor_path: {}/sub/x does not"),
        (["--bundle=r", "--state-dir={}/sub"], 2, "{}/sub does not answer"),
    ],
)
def test_a_disk_that_hangs_is_named_and_not_waited_for(
    words: list[str], status: int, said: str, place: Path
) -> None:
    disk = place / "disk"
    disk.mkdir()
    given = [word.format(disk) for word in words]
    if not any("--state-dir" in word for word in given):
        given.append(f"--state-dir={place}/state")
    command = [sys.executable, "-m", "vmdriver", "doctor", *given]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation=private", sys.executable, "-m", "tests.contract.hanging_disk", str(disk), *command, f"--bind-socket={place}/run/d.sock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )  # fmt: skip
    if done.returncode == NO_FUSE:
        pytest.skip("no FUSE here")
    assert done.returncode == status, done.stdout + done.stderr
    assert said.replace("{}", str(disk)) in done.stdout + done.stderr
    assert not (ROOT / "r").exists()


@pytest.mark.parametrize(
    "name", ["accelerator.json", "images/kept.json", "boot/current/manifest.json"]
)
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(
    name: str, place: Path
) -> None:
    pipe = place / "state" / name
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    words = [f"--state-dir={place}/state", f"--bind-socket={place}/run/d.sock"]
    done = subprocess.run(
        [sys.executable, "-m", "vmdriver", "doctor", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in {1, 3}, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
