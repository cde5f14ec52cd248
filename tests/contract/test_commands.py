"""Operators' commands in a guest (images/guest/commands.c), asked as the driver asks, in namespaces of this host."""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import subprocess
import tty
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import pytest

from tests.contract.guest_programs import compiled
from tests.fakes.waiting import until
from vmdriver.errors import GuestRefused, Refused
from vmdriver.hypervisor import guest_channel
from vmdriver.hypervisor.guest_programs import AgentPrograms
from vmdriver.lifecycle.ports.programs import MOST_GIVEN, Program, Said, Turn, Window

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces")
BUSYBOX = shutil.which("busybox")
UID, GID = 10001, 10002
INSIDE = """
set -e
mount -t tmpfs run /run
mount -t tmpfs sysroot /sysroot
mkdir -p /sysroot/dev/pts
mount -t proc proc "$1/proc"
mount -t devpts -o newinstance,ptmxmode=666 devpts /sysroot/dev/pts
chroot "$1" /bin/sleep 1000 &
[ -z "$4" ] || echo $! >/run/operator
echo "$5" >/run/sandbox-user
echo ready >"$3/ready"
exec "$6/agent" "$2" "$3/cgroups"
"""


def may() -> None:
    """Nothing is in the way."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent, which takes whoever was silent for 1.5 s for gone."""
    folder = tmp_path_factory.mktemp("agent")
    folder.parent.chmod(0o755)
    options = ("-O2", "-static", "-DUNHEARD_MS=1500.0")
    compiled(folder / "agent", "agent.c", "commands.c", options=options)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of an image."""
    assert BUSYBOX
    root = tmp_path / "root"
    for name in ("bin", "sandbox", "tmp", "proc", "dev"):
        (root / name).mkdir(parents=True)
    for folder in (root, *tmp_path.parents[:3], tmp_path):
        folder.chmod(0o755)
    (root / "tmp").chmod(0o1777)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in ("sh", "id", "cat", "sleep", "env", "pwd", "echo", "stty", "head", "tty", "wc", "seq", "grep", "ls"):  # fmt: skip
        (root / "bin" / name).symlink_to("busybox")
    return root


@dataclass
class Guest:
    """An agent, and the driver's way to it. `folder`: what this host sees of it."""

    root: Path
    folder: Path
    programs: Path
    channel: str

    async def request(
        self, _domain: str, verb: str, fields: Mapping[str, str], limit_s: float, longest: int,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> str:  # fmt: skip
        return await guest_channel.ask_text(
            self.channel, verb, lambda: fields, limit_s, begin, longest=longest
        )

    async def ping(self, _domain: str, limit_s: float) -> dict[str, str]:
        return await guest_channel.ask(self.channel, "ping", dict, limit_s)

    @property
    def port(self) -> AgentPrograms:
        return AgentPrograms(self)  # type: ignore[arg-type]

    async def said(self, *words: str, given: bytes = b"", **more: object) -> tuple[bytes, bytes, int]:  # fmt: skip
        """All of one command, with all its input."""
        name, number, out, err = token_hex(4), 0, b"", b""
        await self.port.begin("d", name, Program(words, **more), 5, may)  # type: ignore[arg-type]
        try:
            async with asyncio.timeout(30):
                while True:
                    number += 1
                    part = given[:MOST_GIVEN]
                    turn = Turn(number, part, last=len(given) <= MOST_GIVEN)
                    found = await self.port.exchange("d", name, turn, 5)
                    given = given[found.taken :]
                    out, err = out + found.out, err + found.err
                    if found.code is not None:
                        return out, err, found.code
        finally:
            await self.port.end("d", name, 5)


@asynccontextmanager
async def guest(
    root: Path, programs: Path, folder: Path, allowed: str = "yes", user: str = f"{UID} {GID}"
) -> AsyncIterator[Guest]:  # fmt: skip
    (folder / "cgroups").mkdir()
    ours, theirs = pty.openpty()
    tty.setraw(ours)
    tty.setraw(theirs)
    words = [str(root), os.ttyname(theirs), str(folder), allowed, user, str(programs)]
    Path("/sysroot").mkdir(exist_ok=True)
    command = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
    process = subprocess.Popen([*command, "sh", "-c", INSIDE, "sh", *words])
    os.set_blocking(ours, False)
    channel = f"/tmp/vmdc-{token_hex(4)}"
    try:
        until((folder / "ready").exists, "the guest is there")
        async with relayed(channel, ours):
            yield Guest(root, folder, programs, channel)
    finally:
        process.kill()
        process.wait()
        for descriptor in (ours, theirs):
            os.close(descriptor)


@asynccontextmanager
async def relayed(path: str, port: int) -> AsyncIterator[None]:
    """The port as a socket, as QEMU shows it: one connection at a time."""
    loop, writers = asyncio.get_running_loop(), list[asyncio.StreamWriter]()

    def say() -> None:
        try:
            data = os.read(port, 65536)
        except OSError:
            return
        for writer in writers[-1:]:
            writer.write(data)

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(OSError):  # it went while it was answered
            while data := await reader.read(65536):
                while data:
                    try:
                        data = data[os.write(port, data) :]
                    except BlockingIOError:
                        await asyncio.sleep(0.001)
        writer.transport.abort()
        writers.remove(writer)

    loop.add_reader(port, say)
    server = await asyncio.start_unix_server(hear, path)
    try:
        yield
    finally:
        loop.remove_reader(port)
        server.close()
        Path(path).unlink()
        async with asyncio.timeout(5):
            while writers:
                for writer in writers:
                    writer.transport.abort()
                await asyncio.sleep(0.001)


@pytest.fixture
async def there(root: Path, programs: Path, tmp_path: Path) -> AsyncIterator[Guest]:
    async with guest(root, programs, tmp_path) as found:
        yield found


async def test_it_runs_in_the_image_as_the_user_sandbox_who_gets_no_further_rights(
    there: Guest,
) -> None:
    shown = "pwd; id -u; id -g; id -G; env; grep -E 'NoNewPrivs|CapEff' /proc/self/status; ls /bin/nosuch; cat /proc/self/oom_score_adj"
    out, _, code = await there.said("sh", "-c", f"{shown}; exit 7")
    lines = out.decode().splitlines()
    assert lines[:4] == ["/sandbox", str(UID), str(GID), str(GID)]
    assert "HOME=/sandbox" in lines
    assert "USER=sandbox" in lines
    assert not [line for line in lines if "OPENSHELL" in line or "TOKEN" in line]
    assert code == 7


async def test_as_root_it_is_only_when_asked_for(there: Guest) -> None:
    assert (await there.said("id", "-u", as_root=True))[0] == b"0\n"


async def test_input_output_and_errors_go_their_own_ways_whole(there: Guest) -> None:
    data = os.urandom(300_000)
    assert await there.said("cat", given=data) == (data, b"", 0)
    out, err, code = await there.said("sh", "-c", "echo one; echo two >&2; seq 20000 >&2")  # fmt: skip
    expected = b"two\n" + b"".join(b"%d\n" % number for number in range(1, 20001))
    assert (out, err, code) == (b"one\n", expected, 0)
    assert (await there.said("wc", "-c"))[0] == b"0\n", "without input it ends"


@pytest.mark.parametrize("window", [None, Window(24, 80)])
async def test_the_user_can_open_its_input_and_output_once_more(
    there: Guest, window: Window | None
) -> None:
    """As /dev/stdout and /dev/stderr are."""
    again = "echo 1 >/proc/self/fd/1; echo 2 >/proc/self/fd/2; exec 3</proc/self/fd/0; exit 6"
    out, err, code = await there.said("sh", "-c", again, window=window)
    assert ((out + err).split(), code) == ([b"1", b"2"], 6)


async def test_how_it_ended_is_told_as_a_shell_tells_it(there: Guest) -> None:
    assert (await there.said("sh", "-c", "kill -9 $$"))[2] == 137
    _, err, code = await there.said("nosuch")
    assert (err, code) == (b"nosuch: No such file or directory\n", 127)
    assert (await there.said("/tmp"))[2] == 126


async def test_a_reader_that_goes_does_not_end_the_agent(there: Guest) -> None:
    assert (await there.said("sh", "-c", "exec <&-; exit 3", given=bytes(200_000)))[2] == 3  # fmt: skip
    assert (await there.said("echo", "still"))[0] == b"still\n"


async def test_what_it_began_ends_with_it(there: Guest) -> None:
    """Also what holds its output."""
    out, _, code = await there.said("sh", "-c", "sleep 900 & echo begun")
    assert (out, code) == (b"begun\n", 0)


def alive(mark: str) -> bool:
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in process.read_bytes():
                return True
        except OSError:
            continue
    return False


async def begun(there: Guest, *words: str) -> str:
    name = token_hex(4)
    await there.port.begin("d", name, Program(words), 5, may)
    return name


@pytest.mark.parametrize("deaf", [False, True])
async def test_one_that_is_ended_ends_also_where_it_does_not_want_to(
    there: Guest, deaf: bool
) -> None:
    mark = f"90{int(token_hex(3), 16)}"
    trap = "trap '' TERM HUP INT; " if deaf else ""
    name = await begun(there, "sh", "-c", f"{trap}while :; do sleep {mark}; done")
    await asyncio.to_thread(until, lambda: alive(mark), "it runs")
    await there.port.end("d", name, 5)
    await asyncio.to_thread(until, lambda: not alive(mark), "it has ended")
    with pytest.raises(GuestRefused, match="no such command"):
        await there.port.exchange("d", name, Turn(1), 5)
    await there.port.end("d", name, 5)


async def test_one_that_nobody_asks_for_ends_by_itself(there: Guest) -> None:
    mark = f"90{int(token_hex(3), 16)}"
    await begun(there, "sh", "-c", f"sleep {mark}; :")
    await asyncio.to_thread(until, lambda: alive(mark), "it runs")
    await asyncio.to_thread(until, lambda: not alive(mark), "it has ended")


async def test_an_exchange_that_is_asked_for_again_is_done_once(there: Guest) -> None:
    name = await begun(there, "cat")
    first = await there.port.exchange("d", name, Turn(1, b"once"), 5)
    assert first.taken == 4
    again = await there.port.exchange("d", name, Turn(1, b"once"), 5)
    assert again == first
    out, number = first.out, 1  # which may be there at once
    while len(out) < 4:
        number += 1
        turn = Turn(number)
        found = await there.port.exchange("d", name, turn, 5)
        assert await there.port.exchange("d", name, turn, 5) == found
        out += found.out
    assert out == b"once"
    for wrong in (number - 1, number + 2, 0):
        with pytest.raises(GuestRefused):
            await there.port.exchange("d", name, Turn(wrong), 5)
    await there.port.end("d", name, 5)


async def test_no_output_is_taken_that_nobody_wants(there: Guest) -> None:
    name = await begun(there, "sh", "-c", "echo kept; exit 4")
    for number in range(1, 4):
        found = await there.port.exchange("d", name, Turn(number, room=0), 5)
        assert found == Said(0, b"", b"", None)
    out, code, number = b"", None, 3
    while code is None:
        number += 1
        found = await there.port.exchange("d", name, Turn(number, room=2), 5)
        assert len(found.out) <= 2
        out, code = out + found.out, found.code
    assert (out, code) == (b"kept\n", 4)
    await there.port.end("d", name, 5)


async def test_a_few_run_at_a_time_and_their_places_are_had_again(there: Guest) -> None:
    names = [await begun(there, "sleep", "900") for _ in range(4)]
    with pytest.raises(GuestRefused, match="so many"):
        await begun(there, "sleep", "900")
    for name in names:
        await there.port.end("d", name, 5)

    async def again() -> bool:
        try:
            return (await there.said("echo", "x"))[0] == b"x\n"
        except GuestRefused:
            return False

    async with asyncio.timeout(10):
        while not await again():
            await asyncio.sleep(0.05)


async def test_on_a_terminal_keys_signals_and_sizes_arrive(there: Guest) -> None:
    name, number, seen = token_hex(4), 0, b""
    shell = Program(("sh", "-c", "[ -t 0 ] && echo terminal; stty size; trap 'echo caught' INT; while read x; do stty size; done; sleep 900"), window=Window(30, 100))  # fmt: skip
    await there.port.begin("d", name, shell, 5, may)

    async def typed(data: bytes, wanted: bytes, window: Window | None = None) -> None:
        nonlocal number, seen
        async with asyncio.timeout(20):
            while True:
                number += 1
                turn = Turn(number, data, window=window)
                found = await there.port.exchange("d", name, turn, 5)
                data, seen, window = data[found.taken :], seen + found.out, None
                if wanted in seen and not data:
                    return

    await typed(b"", b"30 100\r\n")
    assert seen == b"terminal\r\n30 100\r\n"
    await typed(b"\n", b"40 120\r\n", Window(40, 120))
    await typed(b"\x03", b"caught\r\n")
    await there.port.end("d", name, 5)


async def test_a_machine_that_was_begun_without_them_runs_none(
    root: Path, programs: Path, tmp_path: Path
) -> None:
    async with guest(root, programs, tmp_path, allowed="") as there:
        with pytest.raises(Refused, match="started without") as caught:
            await there.port.begin("d", "n", Program(("id",)), 5, may)
        assert caught.value.reason == "CommandsOff"
        for verb in ("begin", "io", "end"):
            with pytest.raises(GuestRefused, match="without operators"):
                await there.request("d", verb, {"id": "n", "argv": "aWQA"}, 5, 17000)


async def test_an_image_whose_user_is_root_has_no_command_run_as_it(
    root: Path, programs: Path, tmp_path: Path
) -> None:
    async with guest(root, programs, tmp_path, user="0 0") as there:
        _, err, code = await there.said("id")
        assert code == 126
        assert b"the user sandbox" in err


WRONG = [
    {"id": "n", "argv": "####"},
    {"id": "n", "argv": "aWQ"},
    {"id": "n", "argv": "a=Q="},
    {"id": "n", "argv": "aWQ="},
    {"id": "n", "argv": "AAAA"},
    {"id": "n"},
    {"argv": "aWQA"},
    {"id": "x" * 64, "argv": "aWQA"},
    {"id": "a/b", "argv": "aWQA"},
    {"id": "n", "argv": "QQAA" * 300},
]


@pytest.mark.parametrize("fields", WRONG)
async def test_a_request_that_is_none_is_refused_and_costs_no_place(
    there: Guest, fields: dict[str, str]
) -> None:
    for _ in range(6):
        with pytest.raises(GuestRefused):
            await there.request("d", "begin", fields, 5, 17000)
    assert (await there.said("echo", "well"))[0] == b"well\n"


async def test_the_other_verbs_are_answered_while_commands_run(there: Guest) -> None:
    name = await begun(there, "sh", "-c", "while :; do echo flood; done")
    for number in range(1, 20):
        await there.port.exchange("d", name, Turn(number), 5)
        assert (await there.ping("d", 5))["operator"] == "1"
    await there.port.end("d", name, 5)


async def test_what_may_not_be_begun_any_more_when_the_channel_is_open_is_not(
    there: Guest,
) -> None:
    def may_not() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await there.port.begin("d", "n", Program(("id",)), 5, may_not)
    with pytest.raises(GuestRefused, match="no such command"):
        await there.port.exchange("d", "n", Turn(1), 5)
    assert (await there.said("echo", "well"))[0] == b"well\n"
