"""vmdriver top in a real terminal, before a driver that comes and goes: keys in, screen out."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.driver import kept_on_disk
from tests.fakes.serve import BIN
from tests.fakes.service import Served, served
from tests.fakes.terminal import Terminal, terminal
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.host.threads import Threads
from vmdriver.model.phase import Phase
from vmdriver.model.record import utc_now
from vmdriver.model.usage import Usage
from vmdriver.storage.layout import Layout

MIB = 2**20
KEYS = "i inspect c console s suspend r resume n snapshot d delete / filter ? q quit"


def moving(taps: Mapping[str, str]) -> dict[str, Usage]:
    """Of each machine: one and a half processors, 3 MiB a second of disk, 5 of network."""
    now = time.monotonic()
    return {
        domain: Usage(
            run=domain,
            cpu_s=1.5 * now,
            memory=300 * MIB,
            own=200 * MIB,
            shared=400 * MIB,
            read=int(2 * MIB * now),
            written=int(MIB * now),
            received=int(5 * MIB * now),
        )
        for domain in taps
    }


@dataclass
class Stage:
    """A state directory, and drivers that come and go before it."""

    root: Path
    threads: Threads
    world: World = field(default_factory=World)

    @property
    def layout(self) -> Layout:
        return Layout(self.root / "state")

    def driver(self) -> AbstractAsyncContextManager[Served]:
        on_disk = kept_on_disk(self.layout, self.threads)
        return served(self.root, world=self.world, usage_of=moving, **on_disk)

    def command(self) -> list[str]:
        run = self.root / "run"
        return [
            *(str(BIN / "vmdriver"), "top", "--interval", "1"),
            *("--state-dir", str(self.layout.root)),
            *("--bind-socket", str(run / "d.sock")),
            *("--admin-socket", str(run / "admin.sock")),
        ]


@pytest.fixture
def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    threads = Threads("storage", 1)
    stage = Stage(tmp_path, threads)
    stage.layout.make()
    yield stage
    threads.close()


@asynccontextmanager
async def watched(
    stage: Stage, *sandboxes: str, **options: object
) -> AsyncIterator[tuple[Served, Terminal]]:
    """A driver with these, and a screen that shows them."""
    async with stage.driver() as client:
        for name in sandboxes:
            await client.create(name)
        words = stage.command()
        async with terminal(stage.root, words, **options) as window:  # type: ignore[arg-type]
            await window.shows(*(f"name-{name}" for name in sandboxes), KEYS)
            yield client, window


def row_of(lines: list[str], name: str) -> list[str]:
    (line,) = (line for line in lines if line.startswith(f" {name}"))
    return line.split()


async def chosen(window: Terminal, name: str) -> None:
    """Move the cursor there: what it is on is said below the table."""
    await window.press("Home")
    for _ in range(10):
        lines = await window.lines()
        if any(f"{name}: the machine" in line for line in lines[-7:]):
            return
        await window.press("Down")
        await asyncio.sleep(0.2)
    raise AssertionError("\n".join(await window.lines()))


async def test_it_shows_what_sandboxes_use(stage: Stage) -> None:
    async with watched(stage, "s1", "s2") as (_, window):

        def there(lines: object) -> bool:
            return bool(re.search(r"name-s1 +running +1[45]\d ", "\n".join(lines)))  # type: ignore[arg-type]

        lines = await window.until(there, "figures")
        name, phase, cpu, own, shared, disk, io, network, age = row_of(lines, "name-s1")
        assert (name, phase) == ("name-s1", "running")
        assert 145 <= int(cpu) <= 155
        assert (own, shared, disk) == ("200M", "400M", "0")
        assert (io, network) == ("3M", "5M")
        assert re.fullmatch(r"\d+s|1m", age)
        assert "sandboxes 2 of 1000: 2 running" in lines[0]
        assert re.search(r"CPU (29|30|31)\d %  memory 600 MiB, own 400 MiB", lines[1])
        assert "pool 0 waiting  templates 0" in lines[2]
        assert len(lines) == 24
        assert all(len(line) <= 80 for line in lines)
        assert any(
            "name-s2 Started" in line or "name-s2 " in line for line in lines[-5:-1]
        )
        await window.press("q")
        assert await window.ended() == 0


async def test_keys_do_what_they_say_with_the_chosen_one(stage: Stage) -> None:
    async with watched(stage, "s1", "s2") as (client, window):
        driver = client.driver
        await chosen(window, "name-s2")
        await window.press("s")
        await window.shows("suspending name-s2: done")
        assert driver.phase("s2") is Phase.SUSPENDED
        assert driver.phase("s1") is Phase.RUNNING
        await window.until(
            lambda lines: row_of(list(lines), "name-s2")[1] == "suspended", "s2"
        )
        await window.press("r")
        await window.shows("resuming name-s2: done")
        assert driver.phase("s2") is Phase.RUNNING
        await window.press("n")
        await window.shows("Name of a snapshot of name-s2")
        await window.press("C-u")
        await window.hides(f"{utc_now():%Y-%m-}")
        await window.type("before")
        await window.press("Enter")
        await window.shows("taking snapshot before name-s2: done")
        assert [entry.name for entry in driver.record("s2").snapshots] == ["before"]
        await window.press("n")
        await window.shows("Name of a snapshot")
        await window.press("Escape")
        await window.hides("Name of a snapshot")
        assert len(driver.record("s2").snapshots) == 1


async def test_a_delete_asks_first(stage: Stage) -> None:
    async with watched(stage, "s1", "s2") as (client, window):
        await chosen(window, "name-s2")
        for answer in ("n", "Enter", "Escape", "q"):
            await window.press("d")
            await window.shows("Delete name-s2 (s2) with its disk")
            await window.press(answer)
            await window.hides("Delete name-s2")
        assert client.driver.phase("s2") is Phase.RUNNING
        await window.press("d")
        await window.shows("Delete name-s2 (s2)")
        await window.press("y")
        await window.shows("deleting name-s2: done", "sandboxes 1 of 1000: 1 running")
        lines = await window.lines()
        assert not any(" s2 " in line for line in lines), "events have its name still"
        assert any(" name-s2 " in line for line in lines)
        assert not client.driver.knows("s2")
        assert client.driver.phase("s1") is Phase.RUNNING


async def test_pages_are_read_and_left(stage: Stage) -> None:
    async with watched(stage, "s1") as (_, window):
        console = stage.layout.sandbox("s1").console
        console.write_bytes(b"first\r\n\x1b[2J[red]evil[/red]\r\n")
        await window.press("i")
        await window.shows("phase", "running", "reference", "up, down, page up")
        await window.press("End")
        await window.shows("network", "held on this host")
        await window.press("q")
        await window.shows("name-s1", KEYS)
        await window.press("Enter")
        await window.shows("reference")
        await window.press("Escape")
        await window.shows(KEYS)
        await window.press("c")
        await window.shows("first", r"\x1b[2J[red]evil[/red]")
        with console.open("ab") as file:
            file.write(b"".join(b"line %d\r\n" % n for n in range(100)))
        await window.shows("line 99")
        await window.press("q")
        await window.press("?")
        await window.shows("suspend", "put it away with its memory", "sort by cpu")
        await window.press("q")
        await window.press("t")
        await window.shows("key", "waiting")
        await window.press("q")
        await window.shows(KEYS)


async def test_a_page_of_what_has_gone_says_so(stage: Stage) -> None:
    async with watched(stage, "s1") as (_, window):
        shutil.rmtree(stage.layout.sandbox("s1").root)
        for key in ("i", "c"):
            await window.press(key)
            await window.shows("sandbox s1 is not known")
            await window.press("q")
            await window.shows(KEYS)


async def test_it_filters_and_sorts(stage: Stage) -> None:
    async with watched(stage, "s1", "s2", "other") as (_, window):
        await window.type("/OTHER")  # at once, as over a slow line
        await window.hides("name-s1")
        await window.press("Enter")
        await window.shows("name-other", "with 'OTHER'")
        await window.press("Escape")
        await window.shows("name-s1", "name-s2")
        for order in ("memory", "disk", "i/o", "network", "age", "name", "cpu"):
            await window.press("o")
            await window.shows(f"by {order}  ")


async def test_who_reads_a_part_of_many_is_not_taken_elsewhere(stage: Stage) -> None:
    async with stage.driver() as client:
        for number in range(40):
            await client.create(f"s{number:02}")
        async with terminal(stage.root, stage.command()) as window:
            await window.shows("name-s00", KEYS)
            await window.type("oooooo")
            await window.shows("by name  name-s00")
            await window.press("End")
            lines = await window.shows("by name  name-s39")
            first = lines[4].split()[0]
            await window.press("Up", "Up", "Up", "Up")
            await window.shows("by name  name-s35")
            before = lines[0]
            await window.until(lambda lines: lines[0] != before, "another look")
            await asyncio.sleep(1.5)
            lines = await window.lines()
            assert lines[4].split()[0] == first
            await window.press("Home")
            lines = await window.shows("by name  name-s00")
            assert lines[4].split()[0] == "name-s00"


async def test_it_says_that_the_driver_is_away_and_goes_on_when_it_is_back(
    stage: Stage,
) -> None:
    async with stage.driver() as client:
        await client.create("s1")
        shown = terminal(stage.root, stage.command())
        window = await shown.__aenter__()
        await window.shows("name-s1")
    try:
        await window.shows("the driver is away since")
        lines = await window.lines()
        assert any("name-s1" in line for line in lines), "what was known stays"
        await window.press("s")
        await window.shows("no driver answers")
        async with stage.driver() as client:
            await client.create("s2")
            await window.shows("name-s1", "name-s2")
            await window.hides("the driver is away")
            await window.hides("no driver answers")
            await window.press("C-c")
            assert await window.ended() == 0
    finally:
        await shown.__aexit__(None, None, None)


async def test_it_waits_for_a_driver_that_was_never_there(stage: Stage) -> None:
    async with terminal(stage.root, stage.command()) as window:
        await window.shows("no driver answers, and is asked again")
        async with stage.driver() as client:
            await client.create("s1")
            await window.shows("name-s1")


@pytest.mark.parametrize(
    ("kind", "environment"),
    [("xterm", ["NO_COLOR=1"]), ("vt100", []), ("xterm-256color", []), ("screen", [])],
)
async def test_every_terminal_has_it_whole(
    kind: str, environment: list[str], stage: Stage
) -> None:
    options = {"kind": kind, "environment": environment}
    async with watched(stage, "s1", **options) as (_, window):
        await window.press("Down")
        lines = await window.shows("name-s1: the machine is running")
        assert lines[-1].rstrip() == KEYS
        coloured = "\n".join(await window.lines(coloured=True))
        assert not re.search(r"\x1b\[[0-9;]*[34][0-7]m", coloured) or not environment
        await window.press("q")
        assert await window.ended() == 0


async def test_a_terminal_that_changes_its_size_keeps_all_columns(stage: Stage) -> None:
    async with watched(stage, "s1") as (_, window):
        await window.resize(120, 30)
        await window.shows("WORKSPACE", "AGE")
        await window.resize(80, 24)
        await window.hides("WORKSPACE")
        await window.shows("NAME", "SHARED", "AGE", KEYS)
        await window.resize(40, 10)
        await window.hides("SHARED")
        lines = await window.shows(" name-s1", "? keys  q quit")
        assert "sandboxes 1" in lines[0]
        await window.press("d")
        await window.shows("|  Delete name-s1 (s1) with its disk", "y yes")
        await window.press("n")
        await window.resize(200, 60)
        lines = await window.shows("WORKSPACE", KEYS)
        assert lines[-1].rstrip() == KEYS


async def test_who_stops_or_ends_it_has_the_terminal_back(stage: Stage) -> None:
    """Ctrl-Z, fg; and kill."""
    async with stage.driver() as client:
        await client.create("s1")
        async with terminal(stage.root, ["bash", "--norc", "-i"]) as window:
            await window.type(f"{shlex.join(stage.command())}\n")
            await window.shows("name-s1", KEYS)
            await window.press("C-z")
            await window.until(at_a_prompt, "a prompt")
            await window.type("echo $((6 * 7)); fg\n")
            await window.shows("name-s1", KEYS)
            await window.press("Down")
            await window.type("?")
            await window.shows("put it away with its memory")
            await window.press("q")
            await window.shows(KEYS)
            await window.press("C-z")
            await window.until(at_a_prompt, "a prompt")
            await window.type(
                "kill %1; fg; echo ended with $?; stty -a | grep -c ' icanon'\n"
            )
            await window.shows("ended with 143", "1")


def at_a_prompt(lines: Sequence[str]) -> bool:
    last = [line for line in lines if line.strip()][-1:]
    return bool(re.match(r"bash-[0-9.]+[#$] *$", last[0])) if last else False


async def test_a_page_says_what_is_there_now(stage: Stage) -> None:
    async with watched(stage, "s1") as (client, window):
        await window.press("i")
        await window.shows("asked for     running")
        client.driver.record("s1")
        await client.driver.manager.stop("s1", "")
        await window.shows("phase         stopped", timeout_s=60)
        await client.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await window.shows("sandbox s1 is not known")
        await window.press("q")
        await window.shows("sandboxes 0 of 1000")


async def test_a_refusal_is_read_to_its_end(stage: Stage) -> None:
    async with watched(stage, "s1") as (client, window):
        await client.driver.manager.stop("s1", "")
        await client.driver.settled()
        await window.press("s")
        lines = await window.shows("suspending name-s1: sandbox s1 is stopped")
        text = " ".join(" ".join(lines).split())
        assert "only a running sandbox can be suspended" in text


async def test_what_is_said_of_sandboxes_moves_nothing(stage: Stage) -> None:
    async with watched(stage, "s1") as (client, window):
        evil = "\x1b[2J[bold red]x[/] \u202e\nforged"
        client.driver.tell("s1", "Odd", evil)
        lines = await window.shows(r"Odd: \x1b[2J[bold red]x[/] \u202e")
        assert not any(line.startswith("forged") for line in lines)


async def test_without_a_terminal_it_says_what_to_use(stage: Stage) -> None:
    process = await asyncio.create_subprocess_exec(
        *stage.command(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 2
    assert b"ls --watch" in out


@pytest.mark.parametrize("interval", ["nan", "inf", "0", "-1", "0.5", "x"])
async def test_an_interval_that_no_driver_takes_is_refused(
    interval: str, stage: Stage
) -> None:
    process = await asyncio.create_subprocess_exec(
        *stage.command(),
        f"--interval={interval}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 2
    assert b"is not within 1 and 3600 seconds" in out
    assert len(out) < 1000, "not every setting is listed"
