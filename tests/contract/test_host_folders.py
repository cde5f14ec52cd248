"""Folders of the host: how they are opened, what the box around their readers is, and that a real virtiofsd answers in it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_plan_rendering import with_host_mounts
from vmdriver.errors import DriverError, Refused, TimedOut
from vmdriver.folders import host_folders
from vmdriver.folders.host_folders import VirtiofsFolders
from vmdriver.folders.reader import VARIABLE, Program, Reader, find_program
from vmdriver.folders.resolving import open_folder
from vmdriver.host import strays
from vmdriver.model.ids import mark
from vmdriver.model.plan import LaunchPlan, MachineUser
from vmdriver.storage.layout import Layout

USER = MachineUser(uid=1_950_000_001, gid=1_950_000_000)
WRITER = 1_950_000_002
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Without links on the way, and open to others."""
    found = Path(os.path.realpath(tmp_path))
    found.chmod(0o755)
    yield found
    strays.end(lambda p: any(str(found).encode() in e for e in p.environment))


# --- the way to a folder


def test_a_folder_is_opened_and_what_is_in_it(home: Path) -> None:
    (home / "a/b/c").mkdir(parents=True)
    for path in (home / "a", home / "a/b/c"):
        found = open_folder(str(home / "a"), str(path))
        assert os.fstat(found).st_ino == path.stat().st_ino
        os.close(found)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a/link", "HostMountLink"),
        ("a/link/d", "HostMountLink"),
        ("a/out", "HostMountLink"),
        ("a/file", "HostMountMissing"),
        ("a/gone", "HostMountMissing"),
        ("b", "HostMountLink"),
    ],
)
def test_no_link_is_followed_and_nothing_but_a_folder_is_opened(
    home: Path, path: str, reason: str
) -> None:
    (home / "a/b/d").mkdir(parents=True)
    (home / "a/link").symlink_to("b")
    (home / "a/out").symlink_to("/etc")
    (home / "a/file").touch()
    (home / "b").symlink_to("a")
    allowed = home / path.partition("/")[0]
    with pytest.raises(DriverError) as refused:
        open_folder(str(allowed), str(home / path))
    assert refused.value.reason == reason


@pytest.mark.parametrize("kind", ["proc", "sysfs", "tmpfs"])
def test_what_is_the_kernels_own_is_not_opened_wherever_it_is_mounted(
    home: Path, kind: str
) -> None:
    place = home / "a/root/of its own"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", kind, "none", place], check=True)
    try:
        for path in (place, *[p for p in place.iterdir() if p.is_dir()][:1]):
            if kind == "tmpfs":
                os.close(open_folder(str(home / "a"), str(path)))
                continue
            with pytest.raises(Refused, match=rf"{kind}. is the system's own") as told:
                open_folder(str(home / "a"), str(path))
            assert told.value.reason == "HostMountNotAllowed"
    finally:
        subprocess.run(["umount", place], check=True)


# --- the box, with a shell in place of virtiofsd


def in_box(home: Path, script: str, *, read_only: bool = False) -> str:
    """What a shell says in there."""
    folder = home / "folder"
    folder.mkdir(exist_ok=True)
    os.chown(folder, WRITER, WRITER)
    reader = Reader(
        name=f"folder0:test:{home}",
        source=folder,
        read_only=read_only,
        uid=WRITER,
        gid=WRITER,
        inside_uid=10001,
        inside_gid=10001,
        memory_mib=64,
    )
    shell = Program("/bin/sh")
    words = reader.words(shell, 99)
    words = [*words[: words.index(shell.path)], "/bin/sh", "-c", script]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr


def test_its_reader_sees_the_folder_and_nothing_else_of_the_host(home: Path) -> None:
    found = in_box(
        home,
        "id -u; ls /; ls /proc | grep -c '^[0-9]'; ls /sys/class/net /etc 2>&1; grep -c : /proc/net/dev;"
        "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status",
    )
    lines = found.split("\n")
    assert lines[0] == "10001"
    assert set(lines[1:9]) >= {"bin", "dev", "folder", "lib", "proc", "sbin", "usr"}
    assert not {"etc", "root", "var", "home", "srv", "tmp", "run"} & set(lines)
    assert "CapEff:\t0000000000000000" in lines
    assert "NoNewPrivs:\t1" in lines
    assert "Seccomp:\t2" in lines


def test_what_is_written_is_its_users_and_gets_no_set_id_bits(home: Path) -> None:
    found = in_box(
        home,
        "cd /folder; umask 0; echo a > a; chmod 4755 a; chmod 2755 a; chmod 0750 a; stat -c '%u %a' a;"
        """perl -e 'sysopen(my $f, "b", 0101, 04755) or print "no b: $!\\n"; """
        """my ($c, $a, $how) = ("c", "a", "\\0" x 24); """
        """syscall(133, $c, 0104755, 0) == 0 or print "no c: $!\\n"; """
        """print syscall(117, -1, 0, -1), syscall(119, -1, 0, -1), " pretended\\n"; """
        """syscall(437, -100, $a, $how, 24) < 0 and print "no openat2: $!\\n"; """
        """socket(my $s, 1, 1, 0) or print "no socket: $!\\n"; """
        """sysopen(my $g, "e", 0101, 0644) or print "no e: $!\\n"'""",
    )
    assert found.count("Operation not permitted") == 5, found
    assert "10001 750\n" in found
    assert "00 pretended" in found
    assert "no openat2: Function not implemented" in found
    assert "no socket: " in found
    made = {path.name: path.stat() for path in (home / "folder").iterdir()}
    assert made.keys() == {"a", "e"}
    assert {(s.st_uid, s.st_gid) for s in made.values()} == {(WRITER, WRITER)}
    assert all(s.st_mode & 0o6000 == 0 for s in made.values())


def test_a_folder_that_may_be_read_is_not_written_to_by_anybody_in_there(
    home: Path,
) -> None:
    found = in_box(
        home,
        "touch /folder/x; mount -o remount,rw /folder; umount /folder; chmod 0777 /folder;"
        "unshare --user --map-root-user --mount sh -c 'mount -o remount,rw,bind /folder; touch /folder/y'",
        read_only=True,
    )
    assert "Read-only file system" in found
    assert not list((home / "folder").iterdir())


# --- virtiofsd


@pytest.mark.parametrize(
    ("owner", "directory"),
    [
        ("ghost", "sandboxes/../kept"),
        ("ghost", "sandboxes/s1"),
        ("ghost", "sandboxes/s1/folders"),
        ("s1", "sandboxes/s1/private"),
        ("..", "sandboxes/../folders"),
        ("", "sandboxes//folders"),
        ("../kept", "sandboxes/../kept/folders"),
    ],
)
async def test_what_a_program_of_anybodys_names_is_never_removed(
    home: Path, owner: str, directory: str
) -> None:
    (home / directory).mkdir(parents=True)
    (home / directory / "file").touch()
    name = f"folder0:{mark('test', owner)}:{home}/{directory}"
    folders = VirtiofsFolders(home / "sandboxes", "test", USER)
    words = ["setpriv", "--reuid=65534", "--clear-groups", "sleep", "60"]
    with subprocess.Popen(words, env={**os.environ, VARIABLE: name}) as program:
        try:
            assert name in await asyncio.to_thread(strays.values_of, VARIABLE)
            assert await folders.marked() == []
            assert await folders.shared() == {}
        finally:
            program.kill()
    with pytest.raises(DriverError):
        await folders.end(mark("test", owner), f"{home}/{directory}")
    assert (home / directory / "file").exists()


@pytest.fixture
def folders(home: Path) -> VirtiofsFolders:
    try:
        find_program()
    except Refused as error:
        pytest.skip(error.message)
    (home / "sandboxes/s1").mkdir(parents=True)
    return VirtiofsFolders(home / "sandboxes", "test", USER)


def shared_plan(home: Path) -> LaunchPlan:
    """A plan with two folders of that home."""
    plan = with_host_mounts()
    mounts = []
    for mount, name in zip(plan.host_mounts, ("models", "out"), strict=True):
        (home / name).mkdir(exist_ok=True)
        path, tag = str(home / name), mount.tag
        socket = f"{home}/sandboxes/s1/folders/{tag}.sock"
        update = {"path": path, "allowed": path, "socket": socket}
        mounts.append(mount.model_copy(update=update))
    return plan.model_copy(update={"host_mounts": tuple(mounts), "user": USER})


MARK = mark("test", "s1")


async def test_a_trial_answers_and_leaves_nothing(
    home: Path, folders: VirtiofsFolders
) -> None:
    assert await folders.try_one() == find_program().path
    assert await folders.shared() == {}
    assert not [v for v in strays.values_of(VARIABLE) if "trial" in v]


BECOMING = 'test "$1" = 0 && exec sleep 60; exec sh "$0" $(($1 - 1))'
"""Becomes a program again and again, as who reads a folder does at its beginning."""


def test_who_is_just_becoming_another_program_is_found(home: Path) -> None:
    script, name = home / "script", f"folder0:test:{home}"
    script.write_text(BECOMING)
    words, known = ["sh", str(script), "4000"], {**os.environ, VARIABLE: name}
    with subprocess.Popen(words, env=known) as program:
        try:
            missed = sum(
                name not in strays.values_of(VARIABLE)
                for _ in range(400)
                if program.poll() is None
            )
        finally:
            program.kill()
    assert missed == 0


async def test_its_sockets_lie_where_the_state_directory_has_them(
    home: Path,
) -> None:
    own = Layout(home).sandbox("s1").folders
    assert own == home / "sandboxes/s1" / host_folders.DIRECTORY


async def test_readers_outlive_us_are_found_and_end(
    home: Path, folders: VirtiofsFolders
) -> None:
    plan, directory = shared_plan(home), home / "sandboxes/s1/folders"
    await folders.share(plan, MARK, str(directory))
    another = VirtiofsFolders(home / "sandboxes", "test", USER)
    assert await another.shared() == {MARK: {"folder0", "folder1"}}
    (found,) = await another.marked()
    assert (found.kind, found.name, found.sandbox_id) == (
        "folders",
        str(directory),
        "s1",
    )
    async with asyncio.timeout(10):  # until both have begun their own programs
        while (await another.memory())[1] <= 2**20:
            await asyncio.sleep(0.05)
    readers, size = await another.memory()
    assert readers == 2
    assert 2**20 < size < 200 * 2**20, "two programs' own, with their boxes"
    elsewhere = VirtiofsFolders(home / "others", "test", USER)
    assert await elsewhere.memory() == (0, 0)
    assert await elsewhere.marked() == [], "another state directory's are not ours"
    for mount in plan.host_mounts:
        info = Path(mount.socket).lstat()
        assert (info.st_uid, info.st_mode & 0o777) == (USER.uid, 0o600)
        await asyncio.to_thread(
            host_folders.ask,
            directory,
            f"{mount.tag}.sock",
        )
    for _ in range(2):
        await another.end(MARK, str(directory))
        assert await another.shared() == {}
        assert await another.memory() == (0, 0)
        assert not directory.exists()


async def test_a_machines_user_comes_to_its_sockets_whatever_the_umask_is(
    home: Path, folders: VirtiofsFolders
) -> None:
    plan, directory = shared_plan(home), home / "sandboxes/s1/folders"
    before = os.umask(0o077)
    try:
        await folders.share(plan, MARK, str(directory))
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o711
    await folders.end(MARK, str(directory))


async def test_a_half_of_it_is_ended_and_begun_anew(
    home: Path, folders: VirtiofsFolders
) -> None:
    plan, directory = shared_plan(home), home / "sandboxes/s1/folders"
    (home / "out").rmdir()
    with pytest.raises(DriverError) as refused:
        await folders.share(plan, MARK, str(directory))
    assert refused.value.reason == "HostMountMissing"
    (home / "out").mkdir()
    await folders.share(plan, MARK, str(directory))
    assert await folders.shared() == {MARK: {"folder0", "folder1"}}
    await folders.end(MARK, str(directory))


async def test_what_is_mounted_in_a_folder_is_not_shared(
    home: Path, folders: VirtiofsFolders
) -> None:
    plan, directory = shared_plan(home), home / "sandboxes/s1/folders"
    (home / "models/inner").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", home / "models/inner"], check=True)
    try:
        (home / "models/inner/secret").touch()
        await folders.share(plan, MARK, str(directory))
        seen = await asyncio.to_thread(seen_by_a_reader, home)
        assert seen == ["inner"]
    finally:
        await folders.end(MARK, str(directory))
        subprocess.run(["umount", home / "models/inner"], check=True)


def seen_by_a_reader(home: Path) -> list[str]:
    """Names below the folder as the reader of the models has it."""
    name = f"{VARIABLE}=folder0:{MARK}:{home}".encode()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                program = (process / "comm").read_text().strip()
                if (
                    program == "virtiofsd"
                    and name in (process / "environ").read_bytes()
                ):
                    top = process / "root/folder"
                    return sorted(str(p.relative_to(top)) for p in top.rglob("*"))
        time.sleep(0.05)
    raise AssertionError("nobody reads it")


async def test_a_folder_that_does_not_answer_is_told_in_time(
    home: Path, folders: VirtiofsFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a FUSE file system whose program answers nothing; the others are looked at meanwhile."""
    monkeypatch.setattr(host_folders, "LOOK_S", 0.3)
    hung = home / "hung"
    hung.mkdir()
    try:
        answers = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        pytest.skip(f"/dev/fuse: {error.strerror}")
    try:
        options = f"fd={answers},rootmode=40000,user_id=0,group_id=0".encode()
        where = str(hung).encode()
        assert ctypes.CDLL(None).mount(b"hung", where, b"fuse", 0, options) == 0
        for _ in range(2):
            with pytest.raises(TimedOut, match="look at .*hung/models"):
                await folders.look_at(str(hung), str(hung / "models"))
        (home / "other").mkdir()
        await folders.look_at(str(home / "other"), str(home / "other"))
    finally:
        os.close(answers)
        subprocess.run(["umount", "-l", hung], check=True)


async def test_without_virtiofsd_it_is_told(home: Path) -> None:
    def none(*_: Any) -> Program:
        return find_program((Program("/nowhere/virtiofsd"),))

    folders = VirtiofsFolders(home, "test", USER, none)
    with pytest.raises(Refused) as refused:
        await folders.look(())
    assert refused.value.reason == "VirtiofsdMissing"


async def test_one_that_ends_at_once_is_told(home: Path) -> None:
    folders = VirtiofsFolders(home, "test", USER, lambda: Program("/bin/false"))
    with pytest.raises(DriverError) as failed:
        await folders.try_one()
    assert failed.value.reason == "HostMountFailed"
