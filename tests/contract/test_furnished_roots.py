"""What init makes of an image's root directory before it mounts or writes anything there (images/guest/furnish.c)."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.contract.guest_programs import compiled

DIRECTORIES = ("proc", "sys", "dev", "run", "tmp", "etc", "opt", "sandbox")
LINE = "sandbox:x:10001:10002::/sandbox:/bin/sh\n"
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: devices, owners")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("furnish") / "furnish", "furnish.c")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An image's, beside a canary that none of it may reach."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("canary")
    (outside / "empty").mkdir()
    root = tmp_path / "root"
    root.mkdir()
    return root


def seen(path: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """All that is below: mode, owner, size of what it is, and content."""
    return {
        str(p): (
            (found := p.lstat()).st_mode,
            found.st_uid,
            found.st_nlink,
            p.read_bytes() if p.is_file() else b"",
        )
        for p in sorted(path.rglob("*"))
    }


def furnish(
    program: Path, root: Path, *, fails: bool = False
) -> subprocess.CompletedProcess[str]:
    """It ends soon, leaves what is outside alone, and what it was to make is there."""
    outside = seen(root.parent / "outside")
    command = [program, root, "10001", "10002"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    assert (done.returncode != 0) == fails, done.stderr
    assert seen(root.parent / "outside") == outside
    if not fails:
        for name in (*DIRECTORIES, "opt/openshell"):
            assert stat.S_ISDIR((root / name).lstat().st_mode), name
    return done


def test_an_empty_image_gets_directories_and_a_user(program: Path, root: Path) -> None:
    assert furnish(program, root).stdout == "10001 10002\n"
    assert (root / "etc/passwd").read_text() == LINE
    assert (root / "etc/group").read_text() == "sandbox:x:10002:\n"
    before = seen(root)
    furnish(program, root)
    assert seen(root) == before, "a second time there is nothing to do"


def test_the_images_own_user_is_taken_and_nothing_is_written(
    program: Path, root: Path
) -> None:
    (root / "etc").mkdir()
    text = "root:x:0:0::/:/bin/sh\nsandbox:x:1234:567:x:/home:/bin/bash"
    (root / "etc/passwd").write_text(text)
    assert furnish(program, root).stdout == "1234 567\n"
    assert (root / "etc/passwd").read_text() == text
    assert not (root / "etc/group").exists()


@pytest.mark.parametrize("uid", ["0", "000"])
def test_an_image_whose_workload_would_be_root_does_not_start(
    uid: str, program: Path, root: Path
) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(f"sandbox:x:{uid}:1000::/sandbox:/bin/sh\n")
    assert "the user sandbox" in furnish(program, root, fails=True).stderr


def test_a_line_is_added_to_what_ends_without_one(program: Path, root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_bytes(
        b"root:x:0:0::/:/bin/sh\0odd\nnot-sandbox:x:1:1::/"
    )
    (root / "etc/group").write_text("sandbox:x:77:\n")
    (root / "etc/passwd").chmod(0o604)
    assert furnish(program, root).stdout == "10001 10002\n"
    lines = (root / "etc/passwd").read_bytes()
    assert lines.endswith(b"\nnot-sandbox:x:1:1::/\n" + LINE.encode())
    assert (root / "etc/passwd").stat().st_mode & 0o777 == 0o604
    assert (root / "etc/group").read_text() == "sandbox:x:77:\n"


def make(path: Path, kind: str, target: Path) -> None:
    match kind:
        case "link out":
            path.symlink_to(target)
        case "link up":
            path.symlink_to("../" * 40 + str(target).lstrip("/"))
        case "dangling link":
            path.symlink_to(target.parent / "made by init")
        case "loop":
            path.symlink_to(path.name)
        case "FIFO":
            os.mkfifo(path)
        case "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
        case "socket":
            os.mknod(path, stat.S_IFSOCK | 0o666)
        case "file":
            path.write_text("x")


KINDS = ["link out", "link up", "dangling link", "loop", "FIFO", "device", "socket"]


@pytest.mark.parametrize("kind", [*KINDS, "file"])
def test_directories_that_are_something_else_become_directories(
    program: Path, root: Path, kind: str
) -> None:
    for name in DIRECTORIES:
        make(root / name, kind, root.parent / "outside")
    furnish(program, root)
    shutil.rmtree(root / "opt/openshell")
    make(root / "opt/openshell", kind, root.parent / "outside" / "empty")
    furnish(program, root)
    assert (root / "etc/passwd").read_text() == LINE


@pytest.mark.parametrize("kind", KINDS)
def test_users_files_that_are_something_else_are_neither_opened_nor_followed_outside(
    program: Path, root: Path, kind: str
) -> None:
    (root / "etc").mkdir()
    for name in ("passwd", "group", ".passwd.fresh", ".group.fresh"):
        make(root / "etc" / name, kind, root.parent / "outside" / "passwd")
    assert furnish(program, root).stdout == "10001 10002\n"
    assert (root / "etc/passwd").read_text() == LINE
    assert not (root / "etc/passwd").is_symlink()
    assert "canary" not in (root / "etc/group").read_text()


def test_a_link_within_the_image_is_followed_as_the_image_would_see_it(
    program: Path, root: Path
) -> None:
    (root / "etc").mkdir()
    (root / "store").mkdir()
    (root / "store" / "users").write_text("sandbox:x:5:6:::\n")
    (root / "etc/passwd").symlink_to("/store/users")
    (root / "store" / "groups").write_text("staff:x:50:\n")
    assert furnish(program, root).stdout == "5 6\n"
    (root / "store" / "users").write_text("a:x:1:1:::\n")
    (root / "etc/group").symlink_to("../../../store/groups")
    furnish(program, root)
    assert (root / "etc/passwd").read_text() == "a:x:1:1:::\n" + LINE
    assert (root / "etc/group").read_text() == "staff:x:50:\nsandbox:x:10002:\n"
    assert (root / "store" / "users").read_text() == "a:x:1:1:::\n"


@pytest.mark.parametrize(
    "line",
    [
        *("sandbox", "sandbox:", "sandbox:x", "sandbox:x:", "sandbox:x:1", "sandbox:x:1:"),
        *("sandbox:x:-R:0:::", "sandbox:x:1:2", "sandbox:x:99999999999:1:::"),
        *("sandbox:x:4294967295:1:::", "sandbox:x:--help:1:::", "sandbox:x:\n1:1:::"),
    ],
)  # fmt: skip
def test_a_user_without_numbers_is_refused(
    program: Path, root: Path, line: str
) -> None:
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(line)
    if line == "sandbox":
        furnish(program, root)
    else:
        assert "the user sandbox" in furnish(program, root, fails=True).stderr


def test_a_file_that_would_fill_the_memory_is_refused(
    program: Path, root: Path
) -> None:
    (root / "etc").mkdir()
    with (root / "etc/passwd").open("wb") as file:
        file.truncate(1 << 40)
    assert "etc/passwd: File too large" in furnish(program, root, fails=True).stderr
    os.truncate(root / "etc/passwd", 1 << 20)
    furnish(program, root)
    assert (root / "etc/passwd").stat().st_size == (1 << 20) + 1 + len(LINE)
