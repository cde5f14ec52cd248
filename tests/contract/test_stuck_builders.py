"""Programs that turn an image into a disk and do not end: in their boxes, asleep instead of at work."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from tests.fakes.oci_layout import Layout, directory, entry, layer, zstd
from tests.fakes.settings import image_rules
from vmdriver.errors import DriverError
from vmdriver.host import process
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.ports.images import BaseDisk
from vmdriver.oci.image_service import ImageService

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {
    "zstd": "zstd",
    "umoci": "umoci",
    "scan": r"python3[.\d]*",
    "mke2fs": "mke2fs",
}
"""What is stuck -> the name of the program."""
SCRIPT = """import os, re, sys, time
words = sys.argv[1:]
at = [n for n, word in enumerate(words) if re.fullmatch({program!r}, os.path.basename(word)) and n > words.index("bwrap")]
if at and os.path.exists({stuck!r}):
    words[at[0]:] = ["sleep", {token!r}]
while at and os.path.exists({held!r}):
    open({met!r}, "w").close()
    time.sleep(0.02)
os.execv("/usr/bin/prlimit", ["prlimit", *words])
"""


class Builders:
    """Stands before what puts a program into its box. `stick`: from now on it sleeps in there;
    `hold`: it is not begun until `go`.
    """

    def __init__(self, place: Path, what: str) -> None:
        self._stuck, self._held = place / "stuck", place / "held"
        self.met, self.token = place / "met", f"3600.{os.getpid()}"
        folder = place / "bin"
        folder.mkdir()
        text = SCRIPT.format(
            program=PROGRAMS[what],
            stuck=str(self._stuck),
            held=str(self._held),
            met=str(self.met),
            token=self.token,
        )
        script = place / "before_prlimit.py"
        script.write_text(text)
        # Not its own "#!": a checkout's path may hold spaces.
        run = shlex.join([sys.executable, str(script)])
        (folder / "prlimit").write_text(f'#!/bin/sh\nexec {run} "$@"\n')
        (folder / "prlimit").chmod(0o755)
        self.path = f"{folder}:{process.ENVIRONMENT['PATH']}"

    def stick(self) -> None:
        self._stuck.touch()

    def hold(self) -> None:
        self._held.touch()

    def go(self) -> None:
        for path in (self._stuck, self._held):
            path.unlink(missing_ok=True)

    def asleep(self) -> list[int]:
        """Those in their boxes."""
        words = f"sleep\0{self.token}\0".encode()
        return [pid for pid in processes() if command_line(pid) == words]


def processes() -> Iterable[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def until(true: object, what: str, seconds: float = 30) -> None:
    assert callable(true)
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


@pytest.fixture
def image(tmp_path: Path) -> str:
    layout = Layout(tmp_path / "images" / "layout")
    plain = layer(directory("etc"), entry("etc/hello", "hello\n"), zipped=False)
    layout.image("tiny", [zstd(plain)])
    return f"oci:{layout.path}:tiny"


class Store(ImageService):
    """With its directory at hand."""

    def __init__(self, tmp_path: Path, deadline_s: float) -> None:
        self.root, self.threads = tmp_path / "store", Threads("images", 4)
        policy = image_rules(
            (), (tmp_path / "images",), refresh_s=0, build_deadline_s=deadline_s
        )
        super().__init__(self.root, self.threads, policy, numbers=UserNamespace())

    async def get(self, image: str, owner: str = "s1") -> BaseDisk:
        return await self.prepare(image, owner, lambda _progress: None)

    def half_made(self) -> list[Path]:
        return [*self.root.glob(".work-*"), *(self.root / "disks").iterdir()]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async for found in opened(tmp_path, 600):
        yield found


async def opened(tmp_path: Path, deadline_s: float) -> AsyncIterator[Store]:
    store = Store(tmp_path, deadline_s)
    await store.open()
    yield store
    await store.close()
    store.threads.close()


@pytest.fixture(params=list(PROGRAMS))
def builders(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Builders:
    found = Builders(tmp_path, request.param)
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", found.path)
    return found


def hello(disk: BaseDisk) -> str:
    return subprocess.run(
        ["debugfs", "-R", "cat /etc/hello", disk.path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


async def test_one_that_does_not_end_is_ended_and_the_next_try_finds_nothing_of_it(
    builders: Builders, tmp_path: Path, image: str
) -> None:
    builders.stick()
    async for store in opened(tmp_path, 1.5):
        with pytest.raises(DriverError) as failed:
            await asyncio.wait_for(store.get(image), 60)
        assert "took longer than 1.5 s" in failed.value.text()
        assert "push" not in failed.value.text(), "it says nothing about the image"
        assert builders.asleep() == []
        assert store.half_made() == []
    builders.go()
    async for store in opened(tmp_path, 600):
        assert hello(await store.get(image)) == "hello\n"


async def test_a_delete_ends_it_at_once(
    builders: Builders, store: Store, image: str
) -> None:
    builders.stick()
    asked = asyncio.create_task(store.get(image))
    await until(builders.asleep, "it is in its box")
    asked.cancel()
    done, _ = await asyncio.wait({asked}, timeout=10)
    assert done, "whoever deletes the sandbox waits for this"
    assert builders.asleep() == []
    await store.close()
    assert store.half_made() == []
    builders.go()
    assert hello(await store.get(image)) == "hello\n"


async def test_who_goes_takes_nothing_from_who_waits_for_the_same_image(
    builders: Builders, store: Store, image: str
) -> None:
    builders.hold()
    goes, stays = (asyncio.create_task(store.get(image, f"s{n}")) for n in range(2))
    await until(builders.met.exists, "it is about to begin")
    goes.cancel()
    await asyncio.wait({goes})
    assert not stays.done()
    builders.go()
    assert hello(await asyncio.wait_for(stays, 60)) == "hello\n"


KILLED = """
import asyncio, sys
from pathlib import Path
from tests.contract.test_stuck_builders import Store
from vmdriver.host import process

async def main():
    place, image, process.ENVIRONMENT["PATH"] = sys.argv[1:]
    store = Store(Path(place), 600)
    await store.open()
    await asyncio.gather(*(store.get(image, f"s{n}") for n in range(2)))

asyncio.run(main())
"""


async def test_a_driver_that_is_killed_takes_it_along_and_the_next_begins_anew(
    builders: Builders, tmp_path: Path, image: str
) -> None:
    builders.stick()
    command = [sys.executable, "-c", KILLED, str(tmp_path), image, builders.path]
    child = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        await until(builders.asleep, "it is in its box")
    finally:
        child.kill()
        child.wait()
    await until(lambda: not builders.asleep(), "it ends with the driver", 10)
    builders.go()
    async for store in opened(tmp_path, 600):
        assert store.half_made() == []
        assert hello(await store.get(image)) == "hello\n"
