"""A newcomer's mistakes, at the real commands: one clear line says what is wrong and where, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
DISKS = {
    "read-only": 'mount -t tmpfs -o ro tmpfs "$0" && exec "$@"',
    "full": 'mount -t tmpfs -o size=64k tmpfs "$0" && { cat /dev/zero >"$0/fill"; exec "$@"; } 2>&1',
    "without inodes": 'mount -t tmpfs -o nr_inodes=1 tmpfs "$0" && exec "$@"',
}


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may pass: pytest's are closed."""
    with tempfile.TemporaryDirectory(prefix="vmdm") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def run(*words: str, before: list[str] | None = None) -> tuple[int, str]:
    """Status and everything that was said, of `vmdriver WORDS…`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VMDRIVER_")}
    done = subprocess.run(
        [*(before or []), sys.executable, "-m", "vmdriver", *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def settings(place: Path, state: Path | None = None) -> list[str]:
    """So that nothing of this host's own driver is met."""
    (place / "run").mkdir(mode=0o700, exist_ok=True)
    where = f"--bind-socket={place}/run/driver.sock"
    return [where, f"--state-dir={state or place / 'state'}"]


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("command", ["serve", "doctor", "sweep"])
def test_a_disk_that_cannot_be_written_is_named_in_one_line(
    place: Path, disk: str, command: str
) -> None:
    state = place / "disk"
    state.mkdir()
    before = ["unshare", "--mount", "sh", "-c", DISKS[disk], str(state)]
    status, said = run(command, *settings(place, state / "s"), before=before)
    wrong = [
        line for line in said.splitlines() if line.startswith(("vmdriver:", "fail"))
    ]
    words = ("Read-only", "No space", "lock cannot be made", "space")
    assert status in {1, 2}, said
    assert any(word in line for line in wrong for word in words), said


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_a_file_where_the_state_directory_is_to_be_is_named(
    place: Path, command: str
) -> None:
    (place / "file").touch()
    for state in (place / "file", place / "file" / "below"):
        status, said = run(command, *settings(place, state))
        assert status in {1, 2}, said
        assert f"{place}/file" in said
        assert "cannot be made: " in said


def test_who_is_not_root_is_told_so(place: Path) -> None:
    if (
        os.access(ROOT, os.X_OK)
        and subprocess.run(
            [*NOBODY, sys.executable, "-c", "import vmdriver"], cwd=ROOT, check=False
        ).returncode
    ):
        pytest.skip("the checkout is closed to others")
    state = place / "state"
    (state / "sandboxes").mkdir(parents=True, mode=0o711)
    status, said = run("serve", *settings(place), before=NOBODY)
    assert (status, said.count("\n")) == (2, 1)
    assert "must run as root" in said
    status, said = run("doctor", *settings(place), before=NOBODY)
    assert status == 1
    assert "root: does not run as root" in said
    status, said = run("ls", *settings(place), before=NOBODY)
    assert status == 2
    assert "ask as root" in said.splitlines()[0]


def test_a_sweep_of_no_drivers_directory_does_not_speak_of_a_running_driver(
    place: Path,
) -> None:
    status, said = run("sweep", *settings(place, place / "nothing" / "here"))
    assert status == 2
    assert "is not a driver's" in said


@pytest.mark.parametrize("made", ["", "sandboxes", "sandboxes/../layers"])
def test_a_sweep_where_a_driver_was_ended_before_it_had_made_its_folders_finds_nothing(
    place: Path, made: str
) -> None:
    """Such as a demo's, which is told to end before it answers: its folder stayed for that."""
    state = place / "state"
    state.mkdir(mode=0o711)
    for part in filter(None, made.split("..")):
        (state / part.strip("/")).mkdir(mode=0o711)
    words = ["sweep", "--dry-run", *settings(place)]
    status, said = run(*words, before=["unshare", "--net"])
    assert status == 0, said
    assert "nothing is left over" in said


def test_a_driver_says_when_it_starts_what_every_sandbox_will_need(place: Path) -> None:
    nowhere = f"--connection=qemu+unix:///system?socket={place}/nothing"
    given = ["serve", nowhere, *settings(place), "--supervisor-image="]
    status, said = run(*given, before=["unshare", "--net"])
    assert status == 2
    assert "libvirt is not reachable" in said
    told = [line for line in said.splitlines() if "can be started yet" in line]
    boot, supervisor = told
    assert boot.endswith(f"images/build-boot-files {place}/state/boot")
    assert "none is configured: set supervisor_path" in supervisor
    _, said = run(*given, f"--supervisor-path={place}/x", before=["unshare", "--net"])
    assert f"{place}/x is not there" in said
    _, said = run(*given, "--supervisor-path=/bin/true", before=["unshare", "--net"])
    assert "supervisor:" not in said


@pytest.mark.parametrize("lacks", ["folder", "room in its folder's name"])
def test_where_metrics_cannot_be_served_is_told_in_one_line(
    place: Path, lacks: str
) -> None:
    """What was open by then complained of a loop that was closed, in forty lines."""
    path = place / "none" / "m" if lacks == "folder" else place / ("m" * 120)
    nowhere = f"--connection=qemu+unix:///system?socket={place}/nothing"
    given = ["serve", nowhere, *settings(place), f"--metrics-listen=unix:{path}"]
    status, said = run(*given, before=["unshare", "--net"])
    assert status == 2
    last = said.splitlines()[-1]
    assert last.startswith("vmdriver: ")
    assert "metrics" in last
    assert "closed" not in said
    assert "None" not in said


WITHOUT_LIBVIRT = """
import sys
sys.modules["libvirt"] = None
from vmdriver.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("command", "expected"), [("doctor", 1), ("serve", 2)])
def test_a_host_without_pythons_libvirt_is_told_what_to_install(
    place: Path, command: str, expected: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBVIRT, command, *settings(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == expected, done.stderr
    assert "apt-get install python3-libvirt" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
