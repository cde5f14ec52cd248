"""What a program in a box of ours sees and may: asked of programs in real boxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.composed import until
from vmdriver.errors import CommandError, Killed
from vmdriver.host import process
from vmdriver.host.confined.box import Box, Limits, User
from vmdriver.host.confined.user_namespace import FIRST, UserNamespace

MACHINE = User(250_007, 250_000)
DEADLINE_S = 30.0


async def said(box: Box, script: str) -> str:
    done = await process.run(["sh", "-c", script], deadline_s=DEADLINE_S, box=box)
    return done.stdout.decode().strip()


@pytest.fixture
async def numbers() -> AsyncIterator[UserNamespace]:
    namespace = UserNamespace()
    yield namespace
    namespace.close()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    os.chown(folder, MACHINE.uid, MACHINE.gid)
    return folder


async def test_only_what_was_named_is_there(tmp_path: Path, work: Path) -> None:
    secret, given = tmp_path / "secret", tmp_path / "given"
    secret.write_text("secret")
    given.write_text("given")
    box = Box(MACHINE, read=(given,), write=(work,))
    assert await said(box, f"cat {given}; ls {tmp_path}") == "givengiven\nwork"
    assert set((await said(box, "ls /")).split()) == {
        *("bin", "dev", "lib", "lib64", "proc", "sbin", "usr"),
        tmp_path.parts[1],
    }


async def test_only_what_was_given_to_write_is_written(work: Path) -> None:
    outside = work.parent / "outside"
    outside.touch(mode=0o666)
    outside.chmod(0o666)
    box = Box(MACHINE, read=(outside,), write=(work,))
    script = (
        f"echo a >{work}/a; (echo a >{outside}; echo a >/usr/a; echo a >/a) 2>/dev/null"
    )
    await said(box, f"{script}; true")
    assert (work / "a").stat().st_uid == MACHINE.uid
    assert outside.read_text() == ""
    assert not Path("/usr/a").exists()


async def test_it_is_nobody_with_any_right_and_gets_none(work: Path) -> None:
    text = await said(Box(MACHINE), "id -u; id -G; cat /proc/self/status; ls /proc")
    assert text.split("\n")[:2] == ["250007", "250000"]
    fields = dict(line.split(":\t") for line in text.splitlines() if ":\t" in line)
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(fields[name], 16) == 0, name
    assert fields["NoNewPrivs"] == "1"
    processes = [line for line in text.splitlines() if line.isdigit()]
    assert len(processes) < 8, "those of the box, and no other"


async def test_it_has_no_network_unless_it_is_given(work: Path) -> None:
    # Some kernels put interfaces of their own (ifb0, tunnels) into each new namespace.
    words = "readlink /proc/self/ns/net; grep -c 00000000 /proc/net/route || true"
    host = os.readlink("/proc/self/ns/net")
    network, routes = (await said(Box(MACHINE), words)).split()
    assert network != host
    assert routes == "0"
    assert (await said(Box(MACHINE, network=True), words)).split()[0] == host


async def test_files_that_an_image_makes_have_its_owners_shifted(
    tmp_path: Path, numbers: UserNamespace
) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    os.chown(folder, FIRST, FIRST)
    box = Box(await numbers.root(), write=(folder,))
    script = "touch f && chown 70000:5 f && chmod 4755 f && stat -c '%u %g %a' f"
    assert await said(box, f"cd {folder} && {script}") == "70000 5 4755"
    found = (folder / "f").stat()
    assert (found.st_uid, found.st_gid) == (FIRST + 70000, FIRST + 5)


async def test_an_images_root_is_nobody_on_the_host(
    tmp_path: Path, numbers: UserNamespace
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("root's")
    hosts.chmod(0o600)
    box = Box(await numbers.root(), read=(hosts,), write=(tmp_path,))
    tries = (
        f"cat {hosts}",
        f"rm -f {hosts}",
        f"chown 0 {hosts}",
        f"touch {tmp_path}/new",
        "mount -t tmpfs none /dev",
        "unshare --user true",
        "mknod /dev/shm/sda b 8 0",
    )
    for words in tries:
        with pytest.raises(CommandError):
            await said(box, words)
    assert hosts.read_text() == "root's"


async def test_limits_hold(work: Path) -> None:
    small = Limits(address_space=300 * 2**20, file_size=2**20, open_files=16, cpu_s=1)
    box = Box(MACHINE, write=(work,), limits=small)
    with pytest.raises(CommandError):
        await said(box, f"head -c 2M /dev/zero >{work}/f")
    assert (work / "f").stat().st_size == 2**20
    with pytest.raises(CommandError):
        await said(box, "head -c 400M /dev/zero | sort -S 350M >/dev/null")
    with pytest.raises(CommandError) as late:
        await said(box, "while :; do :; done")
    assert not isinstance(late.value, Killed), "it is its own fault"
    few = replace(box, limits=Limits(processes=4))
    with pytest.raises(CommandError):
        await said(few, "sleep 9 & sleep 9 & sleep 9 & sleep 9 & sleep 9 & true")


async def test_a_kill_in_the_box_is_told_from_a_fault_of_the_program(
    work: Path,
) -> None:
    with pytest.raises(Killed, match="sh was killed"):
        await said(Box(MACHINE), "kill -KILL $$")
    with pytest.raises(CommandError, match="sh ended with status 3"):
        await said(Box(MACHINE), "exit 3")
    with pytest.raises(CommandError, match="no-such-program cannot be run"):
        await process.run(["no-such-program"], deadline_s=DEADLINE_S, box=Box(MACHINE))


def of_the_mark(mark: str) -> list[int]:
    """Processes with those words on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


async def test_nothing_of_it_outlives_a_cancelled_call(tmp_path: Path) -> None:
    mark = f"61{os.getpid()}"
    script = f"(setsid sleep {mark} & setsid sleep {mark}) & sleep {mark}"
    running = asyncio.create_task(said(Box(MACHINE), script))
    await until(lambda: len(of_the_mark(f"sleep\0{mark}")) >= 3)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not of_the_mark(mark))


DRIVER = """
import asyncio, sys
from vmdriver.host import process
from vmdriver.host.confined.box import Box, User
from vmdriver.host.confined.user_namespace import UserNamespace
async def main():
    user = await UserNamespace().root() if sys.argv[2] == "image" else User(250007, 250000)
    words = ["sh", "-c", f"setsid sleep {sys.argv[1]} & sleep {sys.argv[1]}"]
    await process.run(words, deadline_s=60, box=Box(user))
asyncio.run(main())
"""


@pytest.mark.parametrize("user", ["machine", "image"])
async def test_it_ends_with_a_driver_that_is_killed(user: str) -> None:
    mark = f"62{os.getpid()}"
    driver = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DRIVER, mark, user
    )
    await until(lambda: len(of_the_mark(f"sleep\0{mark}")) >= 2)
    driver.send_signal(signal.SIGKILL)
    await driver.wait()
    await until(lambda: not of_the_mark(mark))


@pytest.mark.parametrize("way", ["", ">&2"])
async def test_a_program_that_never_stops_talking_is_ended(
    way: str, work: Path
) -> None:
    """Its words are in the driver's memory."""
    begun = f"echo $$ >{work}/begun; exec yes {'a' * 100} {way}"
    with pytest.raises(CommandError, match="said more than"):
        await process.run(
            ["sh", "-c", begun],
            deadline_s=DEADLINE_S,
            box=Box(MACHINE, write=(work,)),
        )
    assert (work / "begun").exists()


REFUSED = """
import asyncio
from vmdriver.errors import HostError
from vmdriver.host.confined.user_namespace import UserNamespace
try:
    asyncio.run(UserNamespace().root())
except HostError as error:
    print(error.reason, error.resolution)
"""


async def test_a_host_that_lets_nobody_make_user_namespaces_says_so_and_what_helps() -> (
    None
):
    """With their number at 0, in a namespace whose root we are."""
    shut = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    words = ["unshare", "--user", "--map-root-user", "--", "sh", "-c", shut, "sh"]
    done = await process.run([*words, sys.executable, "-c", REFUSED], deadline_s=30)
    assert done.stdout.startswith(b"IsolationUnavailable ")
    assert b"max_user_namespaces" in done.stdout
