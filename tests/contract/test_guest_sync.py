"""The agent's word for writing the disks back (images/guest/agent.c), on a disk that is slow: a program of this host at the
end of a terminal.
"""

from __future__ import annotations

import os
import subprocess
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.contract.guest_programs import compiled
from tests.fakes.waiting import until

SLOW_S = 1.0
SLOW = f"""
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int __real_open(const char *path, int flags, int mode);

int __wrap_open(const char *path, int flags, ...) {{ /* the guest's disks are below the folder where it runs */
    va_list rest;
    va_start(rest, flags);
    int mode = flags & O_CREAT ? va_arg(rest, int) : 0;
    va_end(rest);
    int disk = strcmp(path, "/sysroot") == 0 || strncmp(path, "/run/volumes/", 13) == 0;
    return __real_open(disk ? path + 1 : path, flags, mode);
}}

static void note(const char *name, char letter) {{
    int file = open(name, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(file, &letter, 1) == 1)
        close(file);
}}

int __wrap_syncfs(int directory) {{
    char link[40], path[4096] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    if (readlink(link, path, sizeof path - 1) < 0)
        return -1;
    char letter = strrchr(path, '/')[1];
    note("begun", letter);
    usleep({int(SLOW_S * 1e6)});
    note("ended", letter);
    return 0;
}}

void __wrap_sync(void) {{ note("everything", 'x'); }}
"""
WRAPPED = tuple(f"-Wl,--wrap={name}" for name in ("open", "sync", "syncfs"))
Ask = Callable[[str], str]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agent")
    (folder / "slow.c").write_text(SLOW)
    sources = ("agent.c", "commands.c", folder / "slow.c")
    return compiled(folder / "agent", *sources, options=("-O2", *WRAPPED))


@pytest.fixture
def ask(agent: Path, tmp_path: Path) -> Iterator[Ask]:
    """A request; its answer without the number. `begun` and `ended` of the folder have the first letter of each
    file system that was written out.
    """
    master, slave = os.openpty()
    tty.setraw(slave)
    for folder in ("cgroups", "sysroot", "run/volumes"):
        (tmp_path / folder).mkdir(parents=True)
    command = [agent, os.ttyname(slave), tmp_path / "cgroups"]
    process = subprocess.Popen(command, cwd=tmp_path)
    count = 0

    def ask(request: str) -> str:
        nonlocal count
        count += 1
        os.write(master, b"\xff" + f"n{count} {request}\n".encode())
        said = b""
        while not said.endswith(b"\n"):
            said += os.read(master, 4096)
        number, _, rest = said.decode().strip().partition(" ")
        assert number == f"n{count}"
        return rest

    try:
        yield ask
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)


def children(pid: str) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def count(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def test_a_sync_that_comes_to_its_end_is_said_to_and_leaves_nothing(
    ask: Ask, tmp_path: Path
) -> None:
    assert ask("sync timeout_ms=20000") == "ok written=1"
    assert (count(tmp_path / "begun"), count(tmp_path / "ended")) == (1, 1)
    assert ask("sync timeout_ms=20000") == "ok written=1"
    assert count(tmp_path / "ended") == 2, "what has been written since, too"


def test_a_slow_disk_holds_nobody_up_and_is_written_to_by_one_at_a_time(
    ask: Ask, tmp_path: Path
) -> None:
    begun = time.monotonic()
    assert ask("sync timeout_ms=50") == "ok written=0"
    assert ask("ping").startswith("ok")
    assert ask("sync timeout_ms=50") == "ok written=0"
    if time.monotonic() - begun < SLOW_S:  # this host was quick enough to show it
        assert count(tmp_path / "begun") == 1, "a second one beside the first"
    until(lambda: count(tmp_path / "ended") == 1, "it goes on to its end", 20)
    assert ask("sync timeout_ms=20000") == "ok written=1"
    assert count(tmp_path / "ended") == 2


def test_a_freeze_that_comes_meanwhile_writes_by_itself(
    ask: Ask, tmp_path: Path
) -> None:
    """It says that all is on disk, whatever was said before."""
    assert ask("sync timeout_ms=0") == "ok written=0"
    assert "boot_id=" in ask("freeze timeout_ms=5000")
    assert count(tmp_path / "begun") == 2
    assert count(tmp_path / "ended") >= 1


def test_each_disk_is_written_by_itself_and_nothing_else(
    ask: Ask, tmp_path: Path
) -> None:
    """A folder of the host's that does not answer any more would never come to its end."""
    for name in ("volume0", "volume7", "folder0"):
        (tmp_path / "run" / "volumes" / name).mkdir()
    assert ask("sync timeout_ms=20000") == "ok written=1"
    assert (tmp_path / "ended").read_text() == "vvs"
    assert ask("freeze timeout_ms=5000").startswith("ok")
    assert (tmp_path / "ended").read_text() == "vvs" * 2
    assert not (tmp_path / "everything").exists(), "sync() asks all file systems"
