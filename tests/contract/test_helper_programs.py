"""Helper programs die with the driver, whoever kills it: real processes and SIGKILL."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from vmdriver.host.guardian import Charge

GRANDCHILD = ["sh", "-c", "setsid -f sleep 7777; sleep 7777"]
"""Its second process is in another session, and no child of the driver."""
ROOT = Path(__file__).parents[2]


def processes(*words: str) -> list[int]:
    """Those whose command line, or environment, holds all of these."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if int(entry.name) != os.getpid() and all(
                w.encode() in text for w in words
            ):
                found.append(int(entry.name))
    return found


class Drivers:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.begun: list[subprocess.Popen[str]] = []

    def start(self, *command: str, state: Path | None = None) -> subprocess.Popen[str]:
        where = str(state or self.state)
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.helper_driver", where, *command],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.begun.append(driver)
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        return driver

    def until_begun(self, state: Path) -> None:
        """Until its helper and what that began are there: "ready" is said before."""
        mark = f":{state}"
        until(
            lambda: len(processes("VMDRIVER_HELPER_OF=", mark, "7777")) >= 2,
            "not begun",
        )

    def guardians(self) -> list[int]:
        return processes("vmdriver.host.guardian", str(self.state))


@pytest.fixture
def drivers(tmp_path: Path) -> Iterator[Drivers]:
    state = tmp_path / "state"
    state.mkdir()
    drivers = Drivers(state)
    yield drivers
    for driver in drivers.begun:
        driver.kill()
        driver.wait()
        assert driver.stdout is not None
        driver.stdout.close()
    until(lambda: not processes(str(tmp_path)), "something of a driver is left")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_helpers_and_what_they_began_die_with_the_driver(
    drivers: Drivers, number: signal.Signals
) -> None:
    driver = drivers.start(*GRANDCHILD)
    drivers.until_begun(drivers.state)
    mark = f":{drivers.state}"
    driver.send_signal(number)
    driver.wait()
    until(lambda: not processes("VMDRIVER_HELPER_OF=", mark), "they go on", 10)
    until(lambda: not drivers.guardians(), "the guardian stays for ever")


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[dict[str, list[str]]]:
    """Each real tool at something that does not come to an end by itself soon."""
    layout, tree, raw = tmp_path / "layout", tmp_path / "tree", tmp_path / "raw"
    (layout / "blobs" / "sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    os.mkfifo(layout / "index.json")
    tree.mkdir()
    with (tree / "large").open("wb") as file:
        file.truncate(2**40)
    raw.write_bytes(bytes(2**20))
    # Accepts, and never answers.
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        image = f"docker://127.0.0.1:{listener.getsockname()[1]}/x:1"
        disk = ["-t", "ext4", "-d", str(tree), str(tmp_path / "disk"), "2T"]
        unpack = ["raw", "unpack", "--image", f"{layout}:x", str(tmp_path / "unpacked")]
        yield {
            "skopeo": ["inspect", "--tls-verify=false", image],
            "umoci": unpack,
            "mke2fs": ["-q", "-F", *disk],
            "qemu-img": ["bench", "-c", "2000000000", "-f", "raw", str(raw)],
        }


@pytest.mark.parametrize("tool", ["skopeo", "umoci", "mke2fs", "qemu-img"])
def test_each_real_tool_dies_with_the_driver(
    drivers: Drivers, tool: str, endless: dict[str, list[str]]
) -> None:
    driver = drivers.start(tool, *endless[tool])
    mark = f":{drivers.state}"
    until(lambda: processes("VMDRIVER_HELPER_OF=", mark, tool), "it was not begun")
    driver.kill()
    driver.wait()
    until(lambda: not processes("VMDRIVER_HELPER_OF=", mark), "it goes on", 10)


def test_a_guardian_that_is_killed_is_replaced(drivers: Drivers) -> None:
    driver = drivers.start(*GRANDCHILD)
    drivers.until_begun(drivers.state)
    until(drivers.guardians, "there is no guardian")
    (first,) = drivers.guardians()
    os.kill(first, signal.SIGKILL)
    until(lambda: drivers.guardians() not in ([], [first]), "none came in its place")
    driver.kill()
    driver.wait()
    until(
        lambda: not processes("VMDRIVER_HELPER_OF=", f":{drivers.state}"), "they go on"
    )


def test_a_guardian_has_little_in_memory() -> None:
    """Each driver has one, and waits for what its start costs."""
    program = "import sys; sys.path.append(sys.argv[1]); import vmdriver.host.guardian"
    command = [sys.executable, "-I", "-S", "-c", f"{program}; print(*sys.modules)"]
    told = subprocess.run([*command, ROOT], capture_output=True, text=True, check=True)
    imported = set(told.stdout.split())
    assert "select" in imported
    assert not imported & {"asyncio", "logging", "subprocess", "hashlib", "pydantic"}


def test_what_lost_its_guardian_too_ends_when_the_next_driver_begins(
    drivers: Drivers, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    drivers.start(*GRANDCHILD, state=other)
    driver = drivers.start(*GRANDCHILD)
    drivers.until_begun(drivers.state)
    drivers.until_begun(other)
    until(drivers.guardians, "there is no guardian")
    (guardian,) = drivers.guardians()
    os.kill(guardian, signal.SIGSTOP)
    driver.kill()
    driver.wait()
    mark = f":{drivers.state}"
    assert processes("VMDRIVER_HELPER_OF=", mark, "7777"), "nobody ended them"
    os.kill(guardian, signal.SIGKILL)
    drivers.start("sleep", "8888")
    until(lambda: processes("VMDRIVER_HELPER_OF=", mark, "8888"), "its own was ended")
    assert not processes("VMDRIVER_HELPER_OF=", mark, "7777")
    assert processes("VMDRIVER_HELPER_OF=", f":{other}", "7777"), "another driver's"


def probe(root: Path, machine: str = "none,accel=tcg") -> subprocess.Popen[bytes]:
    """Looks as libvirt's do (9.0)."""
    monitor = f"unix:{root}/lib/qemu/qmp-AbCdEf/qmp.monitor,server=on,wait=off"
    command = [
        "-c",
        "import time; time.sleep(600)",
        "-machine",
        machine,
        "-qmp",
        monitor,
    ]
    return subprocess.Popen(["qemu-system-x86_64", *command], executable=sys.executable)


def test_probes_of_our_libvirt_end_and_no_others_and_no_machine(tmp_path: Path) -> None:
    ours, others = tmp_path / "libvirt", tmp_path / "libvirt2"
    mine, foreign = probe(ours), probe(others)
    machine = probe(ours, "pc-q35-7.2,accel=tcg")
    charge = Charge(tmp_path, tmp_path / "driver.lock", (str(ours),))
    until(lambda: len(processes("qmp-AbCdEf", str(tmp_path))) == 3, "not begun")
    charge.end_probes()
    assert mine.wait(10) == -signal.SIGKILL
    assert foreign.poll() is None
    assert machine.poll() is None
    for process in (foreign, machine):
        process.kill()
        process.wait()


IN_ITS_OWN_MOUNT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
folder, name, command = sys.argv[1], sys.argv[2], sys.argv[3:]
assert libc.unshare(0x00020000) == 0, "CLONE_NEWNS"
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0, "MS_REC | MS_PRIVATE"
assert libc.mount(folder.encode(), name.encode(), None, 0x1000, None) == 0, "MS_BIND"
os.execv(sys.executable, ["qemu-system-x86_64", *command])
"""


def test_a_probe_is_known_by_its_folder_where_two_drivers_mounts_have_one_name(
    tmp_path: Path,
) -> None:
    """As below closed folders, where each driver has a mount of its own with the same name."""
    name = tmp_path / "way"
    for folder in ("ours", "theirs"):
        (tmp_path / folder / "libvirt").mkdir(parents=True)
    name.mkdir()
    monitor = f"unix:{name}/libvirt/lib/qemu/qmp-AbCdEf/qmp.monitor,server=on"
    words = ["-c", "import time; time.sleep(600)", "-machine", "none", "-qmp", monitor]

    def begin(folder: str) -> subprocess.Popen[bytes]:
        mount = [sys.executable, "-c", IN_ITS_OWN_MOUNT]
        return subprocess.Popen([*mount, str(tmp_path / folder), str(name), *words])

    mine, foreign = begin("ours"), begin("theirs")
    shows = ("qemu-system-x86_64", "qmp-AbCdEf", str(tmp_path))
    until(
        lambda: (
            len(processes(*shows)) == 2
            and all(
                Path(f"/proc/{p.pid}/root{name}/libvirt").exists()
                for p in (mine, foreign)
            )
        ),
        "not begun",
    )
    roots = (str(tmp_path / "ours" / "libvirt"), f"{name}/libvirt")
    charge = Charge(tmp_path / "ours", tmp_path / "driver.lock", roots)
    try:
        charge.end_probes()
        assert mine.wait(10) == -signal.SIGKILL
        assert foreign.poll() is None, "another driver's probe was ended"
    finally:
        for process in (mine, foreign):
            process.kill()
            process.wait()


def test_a_late_guardian_does_not_harm_the_next_driver(
    drivers: Drivers, tmp_path: Path
) -> None:
    driver = drivers.start("sleep", "7777")
    until(drivers.guardians, "there is no guardian")
    (late,) = drivers.guardians()
    os.kill(late, signal.SIGSTOP)
    driver.kill()
    driver.wait()
    drivers.start("sleep", "8888")
    mark = f":{drivers.state}"
    until(lambda: processes("VMDRIVER_HELPER_OF=", mark, "8888"), "not begun")
    its = probe(drivers.state / "libvirt")
    until(lambda: processes("qmp-AbCdEf", str(drivers.state)), "not begun")
    os.kill(late, signal.SIGCONT)
    until(lambda: late not in drivers.guardians(), "it stays")
    assert its.poll() is None
    assert processes("VMDRIVER_HELPER_OF=", mark, "8888")
    its.kill()
    its.wait()


def test_the_tools_of_these_tests_are_there() -> None:
    for tool in ("skopeo", "umoci", "mke2fs", "qemu-img", "setsid"):
        assert shutil.which(tool), tool
