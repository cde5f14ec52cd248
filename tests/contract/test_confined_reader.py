"""The process that reads a machine's memory stream: it has no right but its descriptors, and ends,
whatever the stream does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.canary import SECRET, watched
from tests.unit.test_checkpoints import RAM, stream
from tests.unit.test_hostile_streams import BEGUN, ENDLESS, LIES, MAIN, writing
from tests.unit.test_stream_passes import Pass, stream_of
from vmdriver.errors import HypervisorError, StorageError, TimedOut
from vmdriver.host import process
from vmdriver.hypervisor.memory import ram_reader
from vmdriver.hypervisor.memory.confined_reader import ConfinedReader, trial
from vmdriver.hypervisor.memory.ram_stream import PAGE
from vmdriver.lifecycle.ports.host import Ownership

ROOT = Path(__file__).parents[2]
USER = Ownership(1879100001, 1879100000)


def always() -> bool:
    return True


def begin(source: int, memory: Path, size: int = RAM) -> ConfinedReader:
    target = os.open(memory, os.O_RDWR | os.O_CREAT, 0o600)
    return ConfinedReader(os.dup(source), target, size, USER)


def children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        # A thread of the test's own may end between the list and the look.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


def the_reader() -> int:
    """Its pid, once it is confined."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for pid in children():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if "Seccomp:\t2" in status:
                    return pid
        time.sleep(0.01)
    raise AssertionError("no reader is confined")


def test_it_gives_what_the_stream_holds(tmp_path: Path) -> None:
    pages = {n: bytes([n]) * PAGE for n in range(1, 40, 3)}
    memory = tmp_path / "memory"
    with writing(stream(pages, {1: b"r" * PAGE})) as source:
        found = begin(source, memory).found(10, always)
    assert found.stored_bytes == len(pages) * PAGE
    assert found.state.endswith(b"\x04devices")
    data = memory.read_bytes()
    assert len(data) == RAM
    for number in range(64):
        page = data[number * PAGE : (number + 1) * PAGE]
        assert page == pages.get(number, bytes(PAGE))


def test_of_passes_the_last_one_holds(tmp_path: Path) -> None:
    """Zeros over what was written before: the process may still write, and needs no more for it."""
    once: Pass = {(b"pc.ram", n): 1 for n in range(64)}
    memory = tmp_path / "memory"
    passes: list[Pass] = [once, {**once, (b"pc.ram", 5): 2}, {(b"pc.ram", 9): 0}]
    with writing(stream_of(passes)) as source:
        found = begin(source, memory).found(10, always)
    assert found.stored_bytes == 63 * PAGE
    content = memory.read_bytes()
    assert [content[n * PAGE] for n in (4, 5, 9, 10)] == [1, 2, 0, 1]


def test_it_has_no_rights_and_no_file_but_three(tmp_path: Path) -> None:
    with writing(MAIN) as source:
        pass_on, hold = os.pipe()
        try:
            reader = begin(pass_on, tmp_path / "memory")
            os.write(hold, os.read(source, 100))
            pid = the_reader()
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":\t" in line
            )
            assert set(status["Uid"].split()) == {str(USER.uid)}
            assert set(status["Gid"].split()) == {str(USER.gid)}
            assert status["Groups"].strip() == ""
            assert status["NoNewPrivs"] == "1"
            assert not any(int(status[f"Cap{k}"], 16) for k in ("Eff", "Prm", "Inh"))
            limits = Path(f"/proc/{pid}/limits").read_text()
            for line in (
                f"Max file size             {RAM}",
                "Max processes             0",
            ):
                assert line in limits
            held = [os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir()]
            assert len(held) == 6
            assert held.count("/dev/null") == 3
            assert sum(name.startswith("pipe:") for name in held) == 2
            assert str(tmp_path / "memory") in held
            reader.end()
            assert not Path(f"/proc/{pid}").exists()
        finally:
            os.close(pass_on)
            os.close(hold)


TRIES = {
    "open": "os.open(path, os.O_RDONLY)",
    "open by a descriptor": "os.open(f'/proc/self/fd/{inside}', os.O_RDWR)",
    "create": "os.open(path + '.new', os.O_CREAT | os.O_WRONLY)",
    "remove": "os.unlink(path)",
    "connect": "socket.socket(socket.AF_UNIX)",
    "signal": "os.kill(os.getppid(), 0)",
    "fork": "os.fork()",
    "run": "os.execv('/usr/bin/true', ['true'])",
    "become root": "os.setresuid(0, 0, 0)",
    "list": "os.listdir('/')",
    "give away": "os.fchmod(inside, 0o777)",
    "a file too long": "os.pwrite(inside, b'x', 4096)",
    "executable memory": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "much memory": "bytearray(512 * 2**20)",
}


@pytest.mark.parametrize("what", TRIES)
def test_who_is_confined_can_do_nothing_but_read_and_write(
    what: str, tmp_path: Path
) -> None:
    """As if the stream had taken it over."""
    canary, inside = tmp_path / "canary", tmp_path / "inside"
    canary.write_bytes(SECRET)
    canary.chmod(0o666)
    text = f"""
import mmap, os, socket, sys
from vmdriver.host.confined.confine import confine
path, inside = sys.argv[1], os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)
confine({USER.uid}, {USER.gid}, file_bytes=4096, memory_bytes=128 * 2**20, cpu_s=5)
assert os.pwrite(inside, b"mine", 0) == 4
try:
    {TRIES[what]}
except (OSError, MemoryError) as error:
    os.write(1, b"refused " + str(error).encode())
else:
    os.write(1, b"done")
os._exit(0)
"""
    with watched(canary):
        done = subprocess.run(
            [sys.executable, "-c", text, canary, inside],
            cwd=ROOT,
            capture_output=True,
            timeout=20,
            check=False,
        )
    assert done.stdout.startswith(b"refused"), (done.stdout, done.stderr)
    assert inside.read_bytes() == b"mine"


@pytest.mark.parametrize("what", ENDLESS)
def test_an_endless_stream_ends_soon_and_is_said(what: str, tmp_path: Path) -> None:
    first, again, reason = ENDLESS[what]
    with writing(first, again) as source:
        reader = begin(source, tmp_path / "memory")
        os.close(source)
        begun = time.monotonic()
        with pytest.raises(HypervisorError, match=reason) as raised:
            reader.found(30, always)
        assert time.monotonic() - begun < 15
    assert raised.value.reason == "StreamRefused"


@pytest.mark.parametrize("what", ["no stream", "a page at 1 TiB", "two lists"])
def test_what_is_wrong_is_said_with_its_reason(what: str, tmp_path: Path) -> None:
    data, reason = LIES[what]
    with (
        writing(data + b"\xff" * 2 * PAGE) as source,
        pytest.raises(HypervisorError, match=reason),
    ):
        begin(source, tmp_path / "memory").found(10, always)
    assert (tmp_path / "memory").stat().st_blocks == 0


@pytest.mark.parametrize("why", ["late", "given up"])
def test_a_stream_that_stops_is_not_waited_for(why: str, tmp_path: Path) -> None:
    source, hold = os.pipe()
    try:
        os.write(hold, BEGUN)
        reader = begin(source, tmp_path / "memory")
        pid = the_reader()
        with pytest.raises(TimedOut, match="does not come to its end"):
            reader.found(0.3 if why == "late" else 30, lambda: why == "late")
        assert not Path(f"/proc/{pid}").exists()
    finally:
        os.close(source)
        os.close(hold)


def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    with writing(MAIN) as source:
        full = os.open("/dev/full", os.O_RDWR)
        reader = ConfinedReader(os.dup(source), full, RAM, USER)
        with pytest.raises(StorageError, match="No space left"):
            reader.found(10, always)


def test_a_reader_that_was_killed_is_told_from_a_bad_stream(tmp_path: Path) -> None:
    source, hold = os.pipe()
    try:
        reader = begin(source, tmp_path / "memory")
        os.kill(the_reader(), 9)
        with pytest.raises(HypervisorError, match="SIGKILL"):
            reader.found(10, always)
    finally:
        os.close(source)
        os.close(hold)


@pytest.mark.parametrize(
    "answer", [b"", b"\0", b"\0" * 13 + b"more", b"\0" + b"\xff" * 12, b"\0" * 2**25]
)
def test_what_a_reader_says_is_not_believed(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been taken over too."""
    liar = "import os, sys; os.write(int(sys.argv[1]), sys.stdin.buffer.read())"

    def lie(_words: list[str], descriptors: tuple[int, ...]) -> process.Helper:
        theirs = os.dup(descriptors[2])
        os.set_inheritable(theirs, True)
        program = subprocess.Popen(
            [sys.executable, "-c", liar, str(theirs)],
            stdin=subprocess.PIPE,
            pass_fds=[theirs],
            start_new_session=True,
        )
        os.close(theirs)
        assert program.stdin is not None
        feeding = threading.Thread(target=_feed, args=(program.stdin, answer))
        feeding.start()
        return process.Helper(program)

    monkeypatch.setattr(process, "begin", lie)
    with (
        writing(MAIN) as source,
        pytest.raises(HypervisorError, match="makes no sense|has ended"),
    ):
        begin(source, tmp_path / "memory").found(10, always)


def _feed(pipe: object, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), pipe:  # type: ignore[attr-defined]
        pipe.write(data)  # type: ignore[attr-defined]


def test_nothing_is_read_by_who_could_not_be_confined(tmp_path: Path) -> None:
    """A wrong user: it says so, and has taken nothing from the pipe."""
    source, hold = os.pipe()
    try:
        os.write(hold, MAIN)
        target = os.open(tmp_path / "memory", os.O_RDWR | os.O_CREAT)
        user = Ownership(2**32 - 1, 2**32 - 1)
        reader = ConfinedReader(os.dup(source), target, RAM, user)
        with pytest.raises(HypervisorError, match="without rights") as raised:
            reader.found(10, always)
        assert raised.value.reason == "IsolationUnavailable"
        assert len(os.read(source, 2**16)) == len(MAIN)
    finally:
        os.close(source)
        os.close(hold)


def test_doctor_is_told_whether_it_would_be_confined() -> None:
    assert trial(USER) == ""
    assert "without rights" in trial(Ownership(2**32 - 1, 2**32 - 1))


@pytest.fixture(autouse=True)
def _nobody_is_left() -> Iterator[None]:
    before = set(children())
    yield
    assert set(children()) <= before
    assert ram_reader.CUT == 0
