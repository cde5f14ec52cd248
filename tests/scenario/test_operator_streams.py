"""Operators' commands over their socket: the real server and client, a driver on a fake host."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pty
import signal
import socket
import stat
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.programs import FakePrograms
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import eventually
from vmdriver.errors import DriverError, Unavailable
from vmdriver.lifecycle.control.commands import Commands
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.ports.programs import Window
from vmdriver.service.streams import client, frames
from vmdriver.service.streams.client import Here, Left
from vmdriver.service.streams.frames import Kind
from vmdriver.service.streams.server import StreamServer

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass
class Place:
    path: Path
    programs: FakePrograms
    driver: FakeDriver
    server: StreamServer
    out: list[bytes]

    async def run(self, *words: str, given: bytes = b"", **more: Any) -> int:
        """As the command does it, with that as all its input."""
        read, write = os.pipe()
        feeding = asyncio.ensure_future(asyncio.to_thread(_feed, write, given))
        here = Here(stdin=read, out=self.out.append, err=self.out.append)
        asked = {"sandbox": "s1", "words": list(words), **more}
        try:
            return await asyncio.to_thread(client.run, self.path, asked, here)
        finally:
            os.close(read)
            await feeding

    async def raw(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)


def _feed(descriptor: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        return
    finally:
        os.close(descriptor)


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Place]:
    world = World()
    allowed = dataclasses.replace(SETTINGS, operator_exec=True)
    driver = FakeDriver(world, settings=allowed)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    programs = FakePrograms(world)
    commands = Commands(find=Operations(driver.manager).find, programs=programs)

    async def ready() -> Commands:
        return commands

    server = StreamServer(ready)
    path = tmp_path / "run" / "exec.sock"
    await server.start(path)
    yield Place(path, programs, driver, server, [])
    await server.close()
    await driver.close()


async def test_a_command_has_its_input_output_and_exit_code(there: Place) -> None:
    data = os.urandom(3000)
    assert await there.run("echo", given=data) == 0
    assert b"".join(there.out) == data
    assert await there.run("exit", "42") == 42
    assert await there.run("exit", "0", as_root=True) == 0
    assert [p.as_root for p in there.programs.begun] == [False, False, True]


async def test_the_socket_is_its_owners_alone(there: Place) -> None:
    assert stat.S_IMODE(there.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(there.path.parent.stat().st_mode) == 0o700


async def test_who_asks_is_the_kernels_word(
    there: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await there.run("exit", "0")
    assert f"uid {os.geteuid()} (the driver's), process {os.getpid()}" in caplog.text


async def test_what_the_driver_refuses_is_said_with_reason_and_way_out(
    there: Place,
) -> None:
    there.programs.allowed = False
    with pytest.raises(DriverError) as caught:
        await there.run("exit", "0")
    assert caught.value.reason == "CommandsOff"
    with pytest.raises(DriverError, match="command: words: ") as caught:
        await there.run()
    assert caught.value.reason == "InvalidRequest"
    with pytest.raises(DriverError, match="timeout_s"):
        await there.run("exit", "0", timeout_s=-1)
    with pytest.raises(DriverError, match="more"):
        await there.run("exit", "0", more=1)


async def test_where_nobody_serves_them_the_way_out_is_said(tmp_path: Path) -> None:
    here = Here(stdin=0, out=print, err=print)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="no driver serves operators' commands") as caught:  # fmt: skip
        client.run(tmp_path / "no", {"sandbox": "s1", "words": ["x"]}, here)
    assert "operator_exec" in caught.value.resolution


async def test_a_client_that_goes_ends_its_command(there: Place) -> None:
    reader, writer = await there.raw()
    writer.write(frames.pack_document(Kind.ASK, {"sandbox": "s1", "words": ["wait"]}))
    assert await frames.read(reader) == (Kind.BEGUN, b"")
    assert len(there.programs.running) == 1
    writer.transport.abort()
    await eventually(lambda: not there.programs.running, "it was ended")


async def test_a_client_that_goes_while_it_takes_nothing_ends_its_command(
    there: Place,
) -> None:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(there.path))
    connection.sendall(frames.pack_document(Kind.ASK, {"sandbox": "s1", "words": ["flood"]}))  # fmt: skip
    await eventually(lambda: there.programs.running, "it floods")
    (program,) = there.programs.running.values()
    await eventually(lambda: program.turns and program.turns[-1].room == 0, "it is full")  # fmt: skip
    connection.close()
    await eventually(lambda: not there.programs.running, "it was ended")


async def test_whoever_takes_nothing_gives_nothing_and_everything_goes_on_later(
    there: Place,
) -> None:
    """Each part of its input is acknowledged, and the acknowledgements lie there, too."""
    reader, writer = await there.raw()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(frames.pack_document(Kind.ASK, {"sandbox": "s1", "words": ["flood"]}))
    await eventually(lambda: there.programs.running, "it floods")
    (program,) = there.programs.running.values()
    await eventually(lambda: program.turns and program.turns[-1].room == 0, "it is full")  # fmt: skip
    there.programs.taken = 1
    writer.write(frames.pack(Kind.INPUT, bytes(1000)))
    seen = len(program.turns)
    await eventually(lambda: len(program.turns) > seen + 5, "it is asked still")
    assert not any(turn.given for turn in program.turns)
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    taken = 0
    async with asyncio.timeout(20):
        while taken < 5:
            frame = await frames.read(reader)
            assert frame is not None
            taken += frame[0] is Kind.TAKEN
    writer.transport.abort()
    await eventually(lambda: not there.programs.running, "it was ended")


async def test_a_driver_that_ends_says_so_and_ends_the_command(there: Place) -> None:
    running = asyncio.ensure_future(there.run("wait", given=b"x"))
    await eventually(lambda: there.programs.running, "it runs")
    await there.server.close()
    with pytest.raises(Unavailable, match="the driver has gone"):
        await running
    await eventually(lambda: not there.programs.running, "it was ended")
    assert not there.path.exists()


WRONG = {
    "no frame": b"\xff" * 64,
    "too long": frames.HEAD.pack(b"A", frames.MOST + 1),
    "no question": frames.pack(Kind.INPUT, b"x"),
    "a driver's": frames.pack(Kind.CODE, b"0"),
    "no JSON": frames.pack(Kind.ASK, b"{"),
    "deep": frames.pack(Kind.ASK, b"[" * 60_000),
    "a list": frames.pack(Kind.ASK, b"[]"),
    "half": frames.pack(Kind.ASK, b"{}")[:-1],
    "two questions": frames.pack_document(Kind.ASK, {"sandbox": "s1", "words": ["wait"]}) * 2,
    "too much": frames.pack_document(Kind.ASK, {"sandbox": "s1", "words": ["wait"]})
    + frames.pack(Kind.INPUT, bytes(frames.MOST)) * 3,
    "no window": frames.pack_document(Kind.ASK, {"sandbox": "s1", "words": ["wait"]})
    + frames.pack_document(Kind.RESIZE, {"rows": -1, "columns": 1}),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
async def test_a_client_that_does_not_keep_to_it_is_let_go_and_others_are_served(
    what: str, there: Place
) -> None:
    reader, writer = await there.raw()
    writer.write(WRONG[what])
    if what == "half":
        writer.write_eof()
    async with asyncio.timeout(10):
        # Whoever has sent more than was read hears of the end as a reset.
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
    writer.transport.abort()
    await eventually(lambda: not there.programs.running, "nothing of it runs")
    assert await there.run("exit", "3") == 3


@pytest.mark.parametrize("typed", [b"typed", b""])
def test_input_that_comes_after_a_commands_end_hides_no_exit_code(
    tmp_path: Path, typed: bytes
) -> None:
    """The driver has said how it ended, and closed, between what is read here and what is sent."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()

        def ended(data: bytes) -> bytes:
            connection, _ = listening.accept()
            connection.sendall(frames.pack(Kind.BEGUN) + frames.pack(Kind.CODE, b"3"))
            connection.close()
            return data

        read, write = os.pipe()
        os.write(write, typed)
        os.close(write)
        here = Here(stdin=read, out=bytes, err=bytes, keys=ended)
        assert client.run(tmp_path / "s", {"sandbox": "s1", "words": ["x"]}, here) == 3
        os.close(read)


async def test_whoever_leaves_ends_the_command(there: Place) -> None:
    read, write = os.pipe()
    os.write(write, b"\x1d")
    here = Here(
        stdin=read, out=there.out.append, err=there.out.append, keys=lambda data: None
    )
    asked = {"sandbox": "s1", "words": ["wait"]}
    with pytest.raises(Left):
        await asyncio.to_thread(client.run, there.path, asked, here)
    await eventually(lambda: not there.programs.running, "it was ended")
    os.close(read)
    os.close(write)


async def test_input_of_a_plain_file_goes_in_whole(
    there: Place, tmp_path: Path
) -> None:
    """epoll(7) knows none."""
    data = os.urandom(200_000)
    (tmp_path / "input").write_bytes(data)
    here = Here(
        stdin=os.open(tmp_path / "input", os.O_RDONLY),
        out=there.out.append,
        err=there.out.append,
    )
    there.programs.taken = 4096
    asked = {"sandbox": "s1", "words": ["echo"]}
    assert await asyncio.to_thread(client.run, there.path, asked, here) == 0
    assert b"".join(there.out) == data
    os.close(here.stdin)


@dataclasses.dataclass
class Typist:
    """Somebody at a terminal, before `vmdriver console s1 -i`."""

    terminal: int
    process: asyncio.subprocess.Process
    seen: bytes = b""

    async def sees(self, wanted: bytes) -> None:
        async with asyncio.timeout(30):
            while wanted not in self.seen:
                await asyncio.sleep(0.01)
                try:
                    self.seen += os.read(self.terminal, 4096)
                except BlockingIOError:
                    continue


@asynccontextmanager
async def typist(there: Place, *more: str) -> AsyncIterator[Typist]:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    os.set_blocking(ours, False)
    where = f"--admin-socket={there.path.with_name('admin.sock')}"
    words = ["-m", "vmdriver", "console", "s1", "-i", where, *more]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT
    )
    try:
        yield Typist(ours, process)
        async with asyncio.timeout(20):
            await process.wait()
        assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
        os.close(theirs)


async def test_a_console_is_a_terminal_of_the_guests_until_its_key_is_pressed(
    there: Place,
) -> None:
    async with typist(there) as found:
        await found.sees(b"Ctrl-] ends it")
        os.write(found.terminal, b"\x03\x1b[Ahello\r")
        await found.sees(b"\x03\x1b[Ahello\r")
        termios.tcsetwinsize(found.terminal, (33, 99))
        found.process.send_signal(signal.SIGWINCH)
        (program,) = there.programs.running.values()
        await eventually(lambda: any(t.window == Window(33, 99) for t in program.turns), "the size is told")  # fmt: skip
        async with typist(there) as another:
            await another.sees(b"another console of sandbox s1 is open")
        assert another.process.returncode == 2
        os.write(found.terminal, b"\x1d")
    assert found.process.returncode == 0
    await eventually(lambda: not there.programs.running, "it was ended")
    assert not there.programs.begun[0].as_root


async def test_a_console_of_root_is_only_had_by_name(there: Place) -> None:
    async with typist(there, "--root") as found:
        await found.sees(b"a shell of s1 as root")
        found.process.send_signal(signal.SIGHUP)
    assert there.programs.begun[0].as_root
    await eventually(lambda: not there.programs.running, "it was ended")


async def test_a_console_without_a_terminal_is_refused(there: Place) -> None:
    where = f"--admin-socket={there.path.with_name('admin.sock')}"
    words = ["-m", "vmdriver", "console", "s1", "-i", where]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT
    )  # fmt: skip
    _, said = await process.communicate()
    assert process.returncode == 2
    assert b"console -i needs a terminal" in said


async def test_the_command_passes_on_input_output_and_exit_code(there: Place) -> None:
    where = f"--admin-socket={there.path.with_name('admin.sock')}"
    start = [sys.executable, "-m", "vmdriver", "exec", where, "s1", "--"]

    async def told(*words: str, given: bytes = b"") -> tuple[bytes, int | None]:
        process = await asyncio.create_subprocess_exec(
            *start, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        out, _ = await process.communicate(given)
        return out, process.returncode

    assert await told("echo", "-n", given=b"\x1b[2Jraw\n") == (b"\x1b[2Jraw\n", 0)
    assert await told("exit", "9") == (b"", 9)
    assert there.programs.begun[0].words == ("echo", "-n")
    process = await asyncio.create_subprocess_exec(
        *start, "wait", stdin=subprocess.PIPE, cwd=ROOT
    )
    await eventually(lambda: there.programs.running, "it runs")
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 130
    await eventually(lambda: not there.programs.running, "it was ended")


async def test_closed_input_and_output_that_nobody_takes_end_it(there: Place) -> None:
    where = f"--admin-socket={there.path.with_name('admin.sock')}"
    start = [sys.executable, "-m", "vmdriver", "exec", where, "s1", "--"]
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", *start, "echo"]
    process = await asyncio.create_subprocess_exec(*closed, cwd=ROOT)
    assert await process.wait() == 0
    mute = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *start, "echo"]
    process = await asyncio.create_subprocess_exec(
        *mute, stdin=subprocess.PIPE, cwd=ROOT
    )
    await process.communicate(b"nobody wants it")
    assert process.returncode == 0
    read, write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *start, "flood", stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE, cwd=ROOT
    )  # fmt: skip
    os.close(write)
    assert await asyncio.to_thread(os.read, read, 10) == b"f" * 10
    os.close(read)
    assert process.stderr is not None
    assert await process.stderr.read() == b""
    assert await process.wait() == 141
    await eventually(lambda: not there.programs.running, "it was ended")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("s2", "--", "echo"), b"no sandbox is named 's2'"),
        (("s1", "--", "x" * 8001), b"longer than 8000 bytes"),
        (("s1", "--", *["x" * 100_000] * 3), b"longer than 8000 bytes"),
        (("--timeout", "nan", "s1", "--", "echo"), b"timeout"),
        (("--timeout", "0.3", "s1", "--", "wait"), b"took longer than 0.3 s"),
    ],
    ids=["unknown", "long", "huge", "nan", "late"],
)
async def test_what_is_not_the_commands_fault_ends_with_125(
    words: tuple[str, ...], said: bytes, there: Place
) -> None:
    where = f"--admin-socket={there.path.with_name('admin.sock')}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vmdriver", "exec", where, *words),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    _, err = await process.communicate()
    assert said in err
    assert process.returncode == 125


async def test_who_finds_no_place_is_told_so(there: Place) -> None:
    others = []
    for _ in range(64):
        others.append(await asyncio.open_unix_connection(there.path))
    with pytest.raises(DriverError, match="64 operators' commands are asked for"):
        await there.run("exit", "0")
    for _, writer in others:
        writer.close()
