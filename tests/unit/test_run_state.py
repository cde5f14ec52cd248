"""What libvirt is kept from believing: machines of an earlier boot, or whose process is another's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vmdriver.hypervisor.run_state import (
    forget_earlier_boot,
    forget_ended_machines,
    forget_unstarted_machines,
    is_machine,
)


@pytest.fixture
def states(tmp_path: Path) -> Path:
    directory = tmp_path / "run" / "qemu"
    directory.mkdir(parents=True)
    return directory


def status(root: Path, name: str, pid: int, directory: Path | None = None) -> Path:
    """As libvirt writes it; the directory that is the run's alone."""
    directory = directory or root / "lib" / "qemu" / f"domain-1-{name}"
    directory.mkdir(parents=True, exist_ok=True)
    (root / "run" / "qemu" / f"{name}.pid").write_text(str(pid))
    (root / "run" / "qemu" / f"{name}.xml").write_text(
        f"<!-- written by libvirt -->\n<domstatus state='paused' pid='{pid}'>"
        f"<libDir path='{directory}'/><domain type='qemu'/></domstatus>"
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
        assert is_machine(alive, "alive")
        assert not is_machine(stranger, "alive")
        assert not is_machine(other, "alive"), "another's name begins like that"
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
