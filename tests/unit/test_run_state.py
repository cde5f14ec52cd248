"""What libvirt is kept from believing: machines of an earlier boot, or whose process is another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from vmdriver.host.users import ids as users
from vmdriver.hypervisor import qemu_process
from vmdriver.hypervisor.run_state import (
    forget_earlier_boot,
    forget_ended_machines,
    forget_unstarted_machines,
)


@pytest.fixture
def states(tmp_path: Path) -> Path:
    directory = tmp_path / "run" / "qemu"
    directory.mkdir(parents=True)
    return directory


def status(
    root: Path, name: str, pid: int, directory: Path | None = None, uid: int = 0
) -> Path:
    """As libvirt writes it; the directory that is the run's alone."""
    directory = directory or root / "lib" / "qemu" / f"domain-1-{name}"
    directory.mkdir(parents=True, exist_ok=True)
    (root / "run" / "qemu" / f"{name}.pid").write_text(str(pid))
    (root / "run" / "qemu" / f"{name}.xml").write_text(
        f"<!-- written by libvirt -->\n<domstatus state='paused' pid='{pid}'>"
        f"<libDir path='{directory}'/><domain type='qemu'><seclabel type='static' model='dac' relabel='no'>"
        f"<label>+{uid}:+250000</label></seclabel></domain></domstatus>"
    )
    return directory


@contextmanager
def process(*arguments: str) -> Iterator[int]:
    """One that does nothing, with these arguments."""
    code = "import sys; sys.stdin.read()"
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as running:
        yield running.pid
        assert running.poll() is None, "nobody ends it"
        running.communicate()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_machine_whose_qemu_was_never_begun_leaves_nothing_to_libvirt(
    tmp_path: Path, states: Path
) -> None:
    lib = tmp_path / "lib" / "qemu"
    link, precious = tmp_path / "link", tmp_path / "precious"
    link.symlink_to(tmp_path)
    status(tmp_path, "running", 4711)
    unstarted = link / "lib" / "qemu" / "domain-2-unstarted"
    status(tmp_path, "unstarted", 0, unstarted)
    status(tmp_path, "elsewhere", 0, precious)
    status(tmp_path, "above", 0, lib)
    (states / "torn.xml").write_text("<domstatus pid='0'")
    (states / "autostarted").touch()
    forget_unstarted_machines(tmp_path)
    assert names(states) == ["autostarted", "running.pid", "running.xml", "torn.xml"]
    assert names(lib) == ["domain-1-running"]
    assert precious.is_dir(), "not libvirt's to remove"


def test_only_a_machines_own_process_keeps_its_state(
    tmp_path: Path, states: Path
) -> None:
    with (
        process("-name", "guest=alive,debug-threads=on") as alive,
        process("-name", "guest=alive2") as other,
        process() as stranger,
    ):
        status(tmp_path, "alive", alive)
        status(tmp_path, "reused", stranger)
        status(tmp_path, "reused-by-another-machine", other)
        status(tmp_path, "gone", int(Path("/proc/sys/kernel/pid_max").read_text()) + 1)
        forget_ended_machines(tmp_path)
        assert qemu_process.is_machine(alive, "alive", None)
        assert not qemu_process.is_machine(stranger, "alive", None)
        assert not qemu_process.is_machine(other, "alive", None), (
            "another's name begins like that"
        )
    assert names(states) == ["alive.pid", "alive.xml"]
    assert names(tmp_path / "lib" / "qemu") == ["domain-1-alive"]


def test_a_machine_that_has_just_ended_is_no_machine(
    tmp_path: Path, states: Path
) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    status(tmp_path, "zombie", child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    forget_ended_machines(tmp_path)
    os.waitpid(child, 0)
    assert names(states) == []


FORGED = """
import ctypes, os, sys, threading, time
how, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([]), os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid)
threading.Thread(target=time.sleep, args=(1000,)).start()
print("begun", flush=True)
if how == "without its first thread":
    exit = {"x86_64": 60, "aarch64": 93}[os.uname().machine]
    ctypes.CDLL(None).syscall(exit, 0)
time.sleep(1000)
"""
"""A QEMU that was taken over: its command line does not name the machine any more, or it has none."""
OWN = 280_000 + os.getpid() % 10_000  # no machine that runs on this host has it


@contextmanager
def ended_at_last(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as another user")
@pytest.mark.parametrize("how", ["under another name", "without its first thread"])
def test_a_machine_cannot_deny_its_process(
    how: str, tmp_path: Path, states: Path
) -> None:
    """It runs as the user that is its own alone: it is not forgotten, and it can be ended."""
    command = [sys.executable, "-c", FORGED, how, str(OWN), "guest=other,x"]
    with ended_at_last(command) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"begun\n"
        if how == "without its first thread":
            until(lambda: state_of(running.pid) == "Z")
        status(tmp_path, "taken-over", running.pid, uid=OWN)
        status(tmp_path, "other", running.pid, uid=OWN + 1)
        assert users.processes_of(OWN) == [running.pid]
        forget_ended_machines(tmp_path)
        assert names(states) == ["taken-over.pid", "taken-over.xml"]
        assert qemu_process.kill(states, "taken-over")
        assert running.wait(10) == -signal.SIGKILL
        assert users.processes_of(OWN) == []
        assert not qemu_process.kill(states, "taken-over")
    forget_ended_machines(tmp_path)
    assert names(states) == []


def state_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text.rpartition(")")[2].split()[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as another user")
def test_a_user_that_others_have_too_says_nothing(tmp_path: Path, states: Path) -> None:
    """Machines of earlier drivers all ran as one, and libvirt's note of the process may be an old one."""
    with process("-name", "guest=another,x") as stranger:
        status(tmp_path, "earlier", stranger)
        assert not qemu_process.kill(states, "earlier")
        forget_ended_machines(tmp_path)
    assert names(states) == []


def test_nothing_of_an_earlier_boot_is_left_to_libvirt(
    tmp_path: Path, states: Path
) -> None:
    with process("-name", "guest=same,debug-threads=on") as alike:
        status(tmp_path, "same", alike)
        forget_earlier_boot(tmp_path, "first")
        assert names(states) == ["same.pid", "same.xml"], "nobody knows which boot"
        forget_earlier_boot(tmp_path, "first")
        assert names(states) == ["same.pid", "same.xml"]
        (states / "torn.xml").write_text("<domstatus pid='0'")
        forget_earlier_boot(tmp_path, "second")
    assert not states.exists()
    assert names(tmp_path / "lib" / "qemu") == []
    assert (tmp_path / "boot-id").read_text() == "second"
