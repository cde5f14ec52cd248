"""What operators and requests say of folders of the host, and the filter of system calls of who reads them."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vmdriver.config import Config, config_of
from vmdriver.config.sources import load
from vmdriver.config.views import settings_from
from vmdriver.errors import ConfigError, Refused
from vmdriver.folders import call_filter
from vmdriver.folders.reader import Program, Reader, find_program
from vmdriver.model.host_mount import AllowedFolder, HostMountWish, allowed_for

ALLOW, KILL, PRETEND = 0x7FFF0000, 0x80000000, 0x00050000
DENY, ABSENT = PRETEND | errno.EPERM, PRETEND | errno.ENOSYS


def config(tmp_path: Path, *folders: Any, **more: Any) -> Config:
    return config_of(
        {"state_dir": str(tmp_path / "state"), "host_mounts": list(folders), **more}
    )


# --- operators


def test_folders_are_read_only_where_nothing_is_said(tmp_path: Path) -> None:
    told = settings_from(config(tmp_path, {"path": "/srv/a"}, "/srv/b", "/srv/c=games"))
    assert told.host_mounts == (
        AllowedFolder(path="/srv/a"),
        AllowedFolder(path="/srv/b"),
        AllowedFolder(path="/srv/c", read_only=False, user="games"),
    )
    assert [folder.read_only for folder in told.host_mounts] == [True, True, False]
    assert settings_from(config(tmp_path)).host_mounts == ()


def test_they_are_tables_in_the_file_and_words_in_flags_and_the_environment(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'host_mounts = [{path = "/srv/a", read_only = false, user = "games"}]'
    )
    found = load(file=file, environment={}).config.machines.host_mounts
    assert found == [AllowedFolder(path="/srv/a", read_only=False, user="games")]
    said = {"VMDRIVER_HOST_MOUNTS": "/srv/a, /srv/b=games"}
    found = load(environment=said).config.machines.host_mounts
    assert [(f.path, f.user) for f in found] == [("/srv/a", ""), ("/srv/b", "games")]
    with pytest.raises(ConfigError, match="host_mounts.0.path: .*no // and"):
        load(environment={"VMDRIVER_HOST_MOUNTS": "/srv/../etc"})


@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ({"path": "srv/a"}, "absolute"),
        ({"path": "/"}, "system's own"),
        ({"path": "/proc/1/root"}, "system's own"),
        ({"path": "/run/user/0"}, "system's own"),
        ({"path": "/srv/./a"}, "no . or"),
        ({"path": "//"}, "no . or"),
        ({"path": "//proc/1/root"}, "no . or"),
        ({"path": "/srv/a\n"}, "unprintable"),
        ({"path": "/srv/a", "read_only": False}, "needs a user"),
        ({"path": "/srv/a", "user": "root"}, "as root"),
        ({"path": "/srv/a", "mode": "rw"}, "Extra inputs"),
    ],
)
def test_what_is_no_folder_to_give_is_told(
    tmp_path: Path, folder: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        config(tmp_path, folder)


@pytest.mark.parametrize("below", ["", "state", "state/images"])
def test_nobody_gets_the_state_directory_or_what_it_is_in(
    tmp_path: Path, below: str
) -> None:
    with pytest.raises(ValidationError, match="has state_dir in it, or is in it"):
        config(tmp_path, str(tmp_path / below))
    config(tmp_path, str(tmp_path / "state-of-others"))


def test_nobody_gets_what_the_state_directory_leads_to(tmp_path: Path) -> None:
    (tmp_path / "data/state").mkdir(parents=True)
    (tmp_path / "state").symlink_to("data/state")
    for path in ("data", "data/state/images"):
        with pytest.raises(ValidationError, match="has state_dir in it, or is in it"):
            config(tmp_path, os.path.realpath(tmp_path / path))
    config(tmp_path, os.path.realpath(tmp_path / "data/models"))


def test_a_folder_that_is_named_twice_is_told(tmp_path: Path) -> None:
    again = {"path": "/srv/a", "read_only": False, "user": "games"}
    with pytest.raises(ValidationError, match="names /srv/a twice"):
        config(tmp_path, "/srv/a", again)


def test_machines_of_a_daemon_get_none(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match='connection = "embed"'):
        config(tmp_path, "/srv/a", connection="qemu:///system")


def test_the_innermost_folder_that_is_allowed_decides() -> None:
    allowed = (
        AllowedFolder(path="/srv"),
        AllowedFolder(path="/srv/out", read_only=False, user="games"),
    )

    def which(path: str, read_only: bool = True) -> str:
        wish = HostMountWish(path=path, mount="/data", read_only=read_only)
        return allowed_for(wish, allowed).path

    assert which("/srv/out/a", read_only=False) == "/srv/out"
    assert which("/srv/outer") == "/srv"
    for path, reason in (
        ("/srv/a", "HostMountReadOnly"),
        ("/sr", "HostMountNotAllowed"),
    ):
        with pytest.raises(Refused) as refused:
            which(path, read_only=False)
        assert refused.value.reason == reason


# --- the filter


def answer(machine: str, number: int, *arguments: int, architecture: int = 0) -> int:
    """What the kernel would do at that call: runs the filter as linux/filter.h says."""
    program = [
        struct.unpack_from("HBBI", call_filter.program(machine), at)
        for at in range(0, len(call_filter.program(machine)), 8)
    ]
    known = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
    values = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, architecture or known[machine], 0, *values)
    at, word = 0, 0
    while True:
        code, if_so, if_not, value = program[at]
        at += 1
        match code:
            case 0x20:
                (word,) = struct.unpack_from("<I", data, value)
            case 0x15:
                at += if_so if word == value else if_not
            case 0x35:
                at += if_so if word >= value else if_not
            case 0x45:
                at += if_so if word & value else if_not
            case 0x06:
                return value
            case _:
                raise AssertionError(f"what is {code:#x}?")


CALLS = {
    "x86_64": {"setresuid": 117, "setresgid": 119, "openat2": 437, "io_uring_setup": 425}
    | {"fchmodat": 268, "mknodat": 259, "openat": 257, "read": 0, "socket": 41},
    "aarch64": {"setresuid": 147, "setresgid": 149, "openat2": 437, "io_uring_setup": 425}
    | {"fchmodat": 53, "mknodat": 33, "openat": 56, "read": 63, "socket": 198},
}  # fmt: skip


@pytest.mark.parametrize("machine", CALLS)
def test_who_reads_a_folder_is_one_user_and_makes_no_set_id_files(machine: str) -> None:
    calls = CALLS[machine]

    def asked(name: str, *arguments: int) -> int:
        return answer(machine, calls[name], *arguments)

    assert asked("setresuid", 2**64 - 1, 0, 2**64 - 1) == PRETEND
    assert asked("setresgid", 2**64 - 1, 5, 2**64 - 1) == PRETEND
    assert asked("openat2") == asked("io_uring_setup") == ABSENT
    assert asked("socket", 1, 1, 0) == DENY
    assert asked("read", 0o4755, 0o4755, 0o4755, 0o4755) == ALLOW
    for mode, expected in (
        (0o644, ALLOW),
        (0o1777, ALLOW),
        (0o4755, DENY),
        (0o2755, DENY),
    ):
        assert asked("fchmodat", 3, 4096, mode, 0) == expected
        assert asked("mknodat", 3, 4096, 0o100000 | mode, 0) == expected
        assert asked("openat", 3, 4096, 0o102, mode) == expected
        assert asked("openat", 3, 4096, 0o20200002, mode) == expected, "O_TMPFILE"
        assert asked("openat", 3, 4096, 0, mode) == ALLOW, "there is no mode"


def test_other_ways_to_ask_the_kernel_are_closed() -> None:
    assert answer("x86_64", 0, architecture=0x40000003) == KILL
    assert answer("x86_64", 0x40000000 + 257) == ABSENT
    with pytest.raises(LookupError):
        call_filter.program("riscv64")


# --- which virtiofsd, and how


@pytest.mark.parametrize("of_qemu", [True, False])
def test_both_kinds_of_virtiofsd_are_begun_without_what_would_undo_the_box(
    of_qemu: bool,
) -> None:
    reader = Reader("f:m:d", Path("/s/folder0"), True, 7, 8, 10001, 10002, 512)
    words = reader.words(Program("/v", of_qemu), 9)
    assert words[words.index("/v") + 1 :][-1:] != ["--"]
    assert "--fd=9" in words
    assert words[words.index("/s/folder0") - 1] == "--ro-bind"
    assert "--die-with-parent" not in words, "it outlives the driver"
    assert {"--reuid=7", "--regid=8", "--map-user=10001", "--map-group=10002"} <= {
        *words
    }
    assert ("--sandbox=none" in words) is not of_qemu
    assert ("--keep-caps" in words) is of_qemu
    assert "env -i " in " ".join(words)


def test_the_first_that_is_there_is_taken(tmp_path: Path) -> None:
    for name in ("b", "c"):
        (tmp_path / name).touch(mode=0o755)
    places = tuple(Program(str(tmp_path / name)) for name in "abc")
    assert find_program(places) == places[1]
    with pytest.raises(Refused) as refused:
        find_program(places[:1])
    assert refused.value.reason == "VirtiofsdMissing"
