"""vmdriver ls --watch: a command of its own, before a driver that comes and goes."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.fakes.serve import BIN
from tests.fakes.service import served
from tests.fakes.terminal import Terminal, terminal
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb


def command(folder: Path, *more: str) -> list[str]:
    socket = ["--bind-socket", str(folder / "run" / "d.sock")]
    state = ["--state-dir", str(folder)]
    return [str(BIN / "vmdriver"), "ls", "--watch", *socket, *state, *more]


@asynccontextmanager
async def piped(words: list[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *("env", "--default-signal=INT", *words),  # whatever the tests were begun with
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def line_of(stream: asyncio.StreamReader | None) -> str:
    assert stream is not None
    async with asyncio.timeout(30):
        return (await stream.readline()).decode()


async def until(stream: asyncio.StreamReader | None, text: str) -> str:
    while text not in (line := await line_of(stream)):
        assert line, f"it ended before {text!r}"
    return line


async def test_a_pipe_gets_a_line_for_each_change(
    tmp_path: Path,
) -> None:
    world = World()
    async with served(tmp_path, world=world) as client:
        await client.create("s1")
        async with piped(command(tmp_path)) as process:
            first = await until(process.stdout, "name-s1")
            assert first.rstrip().endswith("UTC  s1  name-s1  w  Ready=True  Running")
            await client.create("s2")
            await until(process.stdout, "s2  name-s2  w  Ready=True  Running")
            delete = pb.DeleteSandboxRequest(sandbox_id="s1")
            await client.stub.DeleteSandbox(delete)
            await until(process.stdout, "s1  is gone")
            client.driver.broadcaster.close()
            told = await line_of(process.stderr)
            assert told.startswith("the driver is away, and is asked again until")


async def test_it_goes_on_when_the_driver_is_back_and_says_nothing_twice(
    tmp_path: Path,
) -> None:
    world = World()
    async with served(tmp_path, world=world) as client:
        await client.create("s1")
        await client.create("s2")
        watching = piped(command(tmp_path))
        process = await watching.__aenter__()
        await until(process.stdout, "name-s2")
    try:
        await until(process.stderr, "the driver is away")
        async with served(tmp_path, world=world) as client:
            await client.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
            # Neither sandbox is told again as it was: the next line is of what has changed.
            assert "s1" in (line := await line_of(process.stdout))
            assert "Deleting" in line or "gone" in line
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(30):
                assert await process.wait() == 130
        assert b"Traceback" not in await process.stderr.read()  # type: ignore[union-attr]
    finally:
        await watching.__aexit__(None, None, None)


async def test_machines_get_an_object_a_line(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.create("s1")
        async with piped(command(tmp_path, "--json")) as process:
            row = json.loads(await line_of(process.stdout))
            assert (row["id"], row["reason"]) == ("s1", "Running")
            await client.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
            last = await until(process.stdout, '"gone"')
            assert json.loads(last) == {"id": "s1", "gone": True}


async def test_who_was_never_there_is_an_error(tmp_path: Path) -> None:
    async with piped(command(tmp_path)) as process:
        assert await process.wait() == 2
        assert "no driver answers" in await line_of(process.stderr)


async def test_a_terminal_has_one_table_that_changes(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.create("s1")
        async with terminal(tmp_path, command(tmp_path), size=(100, 20)) as window:
            await window.shows("name-s1", "Running", "since", "ago")
            await client.create("s2")
            lines = await window.shows("name-s1", "name-s2")
            assert sum("workspace" in line for line in lines) == 1
            await client.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
            await window.hides("name-s1")
            await client.driver.settled()
            client.driver.broadcaster.close()
            await window.shows("the driver is away")
            await window.press("C-c")
            assert await window.ended() == 130
            assert "Traceback" not in "\n".join(await window.lines())


async def test_more_than_a_terminal_has_lines_are_those_that_changed_last(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as client:
        for number in range(30):
            await client.create(f"s{number}")
        async with terminal(tmp_path, command(tmp_path), size=(100, 20)) as window:
            lines = await window.shows(
                "30 sandboxes; these 17 changed last", "name-s29"
            )
            assert not any("name-s12 " in line for line in lines)
            assert not any("..." in line for line in lines)
            client.driver.broadcaster.close()
            lines = await window.shows("the driver is away")
            assert any("these 16 changed last" in line for line in lines)
            await window.resize(100, 40)
            await window.shows("name-s0 ")
            await window.press("C-c")
            assert await window.ended() == 130


async def test_who_stops_it_or_ends_it_sees_the_cursor_again(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.create("s1")
        async with terminal(tmp_path, ["bash", "--norc", "-i"]) as window:
            await window.type(f"{shlex.join(command(tmp_path))}\n")
            await window.shows("name-s1", "ago")
            assert await cursor(window) == "0"
            await window.press("C-z")
            await window.shows("Stopped")
            assert await cursor(window) == "1"
            await window.type("fg\n")
            async with asyncio.timeout(20):
                while await cursor(window) != "0":
                    await asyncio.sleep(0.05)
            await window.press("C-z")
            await window.type("clear; kill %1; fg; echo ended with $?\n")
            await window.shows("ended with 143")
            assert await cursor(window) == "1"


async def cursor(window: Terminal) -> str:
    return (await window.ask("display-message", "-p", "#{cursor_flag}")).strip()


async def test_a_narrow_terminal_has_a_line_for_each_and_fewer_columns(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as client:
        await client.create("0f9c3a52-7d4e-4a52-9f0b-0123456789ab", name="builder")
        async with terminal(tmp_path, command(tmp_path), size=(70, 12)) as window:
            lines = await window.shows("0f9c3a52-7d4e-4a52-9f0b-0123456789ab")
            assert lines[0].split() == ["id", "name", "reason", "since"]
            await window.resize(40, 12)
            await window.hides("0f9c3a52")
            lines = await window.shows("builder")
            assert lines[0].split() == ["name", "reason"]


async def test_a_dumb_terminal_has_lines(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        await client.create("s1")
        options = {"size": (100, 12), "kind": "dumb"}
        async with terminal(tmp_path, command(tmp_path), **options) as window:  # type: ignore[arg-type]
            await window.shows("s1  name-s1  w  Ready=True  Running")
            await client.create("s2")
            await window.shows("s2  name-s2  w  Ready=True  Running")
