"""The end of the process that launched a driver, as the real kernel tells it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from vmdriver.errors import ConfigError
from vmdriver.host import launcher_watch
from vmdriver.host.launcher_watch import LauncherWatch

Spawn = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts processes that go on until they are killed."""
    made: list[subprocess.Popen[bytes]] = []

    def one() -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sleep", "600"]))
        return made[-1]

    yield one
    for process in made:
        process.kill()
        process.wait()


@pytest.fixture(params=["pidfd", "proc"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without pidfd_open."""

    def without(_pid: int) -> int:
        raise OSError(38, "Function not implemented")

    if request.param == "proc":
        monkeypatch.setattr(os, "pidfd_open", without)
    return str(request.param)


@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
async def test_when_the_launcher_is_killed_the_driver_is_told_and_then_ended(
    kernel: str, reaped: bool, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_watch, "_ORDERLY_END_S", 0.2)
    launcher, driver = spawn(), spawn()
    stop, ended = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    LauncherWatch(launcher.pid, driver.pid).start(
        stop, lambda status: loop.call_soon_threadsafe(ended.set) and status
    )
    await asyncio.sleep(0.6)
    assert not stop.is_set(), "while it lives nothing happens"
    launcher.kill()
    if reaped:
        launcher.wait()
    begun = loop.time()
    async with asyncio.timeout(2):
        await stop.wait()
        assert not ended.is_set(), "there is time for an orderly end"
        await ended.wait()
    assert loop.time() - begun < 2


async def test_a_launcher_that_is_gone_at_the_start_is_said(
    kernel: str, spawn: Spawn
) -> None:
    gone, zombie, driver = spawn(), spawn(), spawn()
    gone.kill()
    gone.wait()
    zombie.kill()
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    for launcher in (gone, zombie):
        with pytest.raises(ConfigError, match=f"process {launcher.pid} .* not there"):
            LauncherWatch(launcher.pid, driver.pid)


async def test_another_process_with_the_launchers_number_is_not_taken_for_it(
    kernel: str, spawn: Spawn
) -> None:
    driver = spawn()
    await asyncio.sleep(0.05)  # the kernel counts starts in hundredths of a second
    with pytest.raises(ConfigError, match="not there any more"):
        LauncherWatch(spawn().pid, driver.pid)
