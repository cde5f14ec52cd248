"""Errors to status codes, references, sockets, logs, commands."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
import time
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmdriver import errors
from vmdriver.host import process
from vmdriver.host.log import parse_level, set_up
from vmdriver.host.packages import way_to
from vmdriver.host.threads import Threads, finished
from vmdriver.oci.reference import parse
from vmdriver.service import server
from vmdriver.service.interceptor import status_of


def subclasses(kind: type) -> set[type]:
    return {kind} | {s for child in kind.__subclasses__() for s in subclasses(child)}


def test_every_error_has_its_status() -> None:
    base = errors.DriverError
    for kind in subclasses(base) - {base}:
        error = (
            kind("field", "problem")
            if kind is errors.InvalidRequest
            else kind("problem")
        )
        code, text = status_of(error)
        assert code is not grpc.StatusCode.UNKNOWN
        assert "problem" in text
        assert code is not grpc.StatusCode.INTERNAL or issubclass(
            kind, errors.HostError
        )


def test_what_is_unknown_stays_opaque(caplog: pytest.LogCaptureFixture) -> None:
    code, text = status_of(RuntimeError("the secret"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text
    incident = text.split("incident ")[1].split()[0]
    assert incident in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("me/tool", "docker.io/me/tool:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/x/y", "docker.io/x/y:latest"),
        ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b:c"),
        ("localhost/a", "localhost/a:latest"),
        ("ghcr.io/a/b:t@sha256:" + "0" * 64, "ghcr.io/a/b@sha256:" + "0" * 64),
    ],
)
def test_references(text: str, expected: str) -> None:
    assert str(parse(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPPER",
        "a//b",
        "a:",
        "a@sha256:1",
        "--help",
        "a b",
        "host/",
        "/a",
        "a:b:c",
        "docker://a",
        "x" * 513,
    ],
)
def test_no_references(text: str) -> None:
    with pytest.raises(errors.InvalidRequest, match=r"template\.image"):
        parse(text)


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_a_clear_error(text: str) -> None:
    try:
        reference = parse(text)
    except errors.InvalidRequest:
        return
    assert not str(reference).startswith("-")
    assert "\n" not in str(reference)


def test_a_long_socket_path_is_refused_before_anything_starts() -> None:
    server.check_path(Path("/" + "x" * 106))
    with pytest.raises(errors.ConfigError, match="108 bytes"):
        server.check_path(Path("/" + "x" * 107))
    with pytest.raises(errors.ConfigError, match="absolute"):
        server.check_path(Path("x"))


async def test_only_a_stale_socket_of_ours_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_WAIT_FOR_PREDECESSOR_S", 0.2)
    path = tmp_path / "s"
    await server.remove_stale(path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    await server.remove_stale(path)
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(errors.ConfigError, match="not a socket"):
        await server.remove_stale(path)
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.ConfigError, match="not a socket"):
        await server.remove_stale(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(errors.ConfigError, match="another program answers"):
            await server.remove_stale(path)
    if os.geteuid() == 0:
        os.chown(path, 12345, 0)
        with pytest.raises(errors.ConfigError, match="belongs to uid 12345"):
            await server.remove_stale(path)


def test_the_sockets_directory_must_be_ours(tmp_path: Path) -> None:
    server.secure_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(errors.ConfigError, match="links are not followed"):
        server.secure_directory(tmp_path / "link")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "precious").touch()
    with pytest.raises(errors.ConfigError, match="is open to others"):
        server.secure_directory(shared)
    assert shared.stat().st_mode & 0o777 == 0o755, "left as it was"


def test_what_the_host_refuses_is_said_and_what_a_bug_says_is_not() -> None:
    refused = OSError(errno.ENOSPC, "No space left on device", "/srv/x/deleted/s1")
    code, text = status_of(refused)
    assert code is grpc.StatusCode.INTERNAL
    assert text.startswith("s1: No space left on device: free some space")
    assert "/srv" not in text
    assert errors.unexpected(refused).reason == "DiskFull"
    for bug in (KeyError("secret"), TimeoutError(), OSError("secret")):
        found = errors.unexpected(bug)
        assert found.text() == f"internal error: {type(bug).__name__}"
        assert "incident" in status_of(bug)[1]
    unnamed = errors.unexpected(OSError(errno.EMFILE, "Too many open files"))
    assert unnamed.message == "Too many open files"
    numbered = OSError(errno.EBADF, "Bad file descriptor", 7)
    assert errors.unexpected(numbered).message == "Bad file descriptor"


async def test_a_command_that_takes_too_long_is_ended_with_its_children() -> None:
    with pytest.raises(errors.CommandError, match="longer than"):
        await process.run(["sh", "-c", "sleep 60 & echo $! >&2; wait"], deadline_s=0.3)
    with pytest.raises(errors.CommandError, match="status 3: bye"):
        await process.run(["sh", "-c", "echo bye >&2; exit 3"], deadline_s=5)
    with pytest.raises(errors.CommandError) as caught:
        await process.run(["no-such-program"], deadline_s=5)
    assert "install the program no-such-program" in caught.value.text()
    done = await process.run(
        [sys.executable, "-c", "import os; print(sorted(os.environ))"], deadline_s=10
    )
    assert "PYTEST" not in done.stdout.decode(), "the environment is a clean one"


async def test_what_a_program_that_is_not_there_is_in_is_said_by_its_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(process.ENVIRONMENT, "PATH", "/nowhere")
    for program, package in (("nft", "nftables"), ("/usr/sbin/mke2fs", "e2fsprogs")):
        assert way_to(program) == f"apt-get install {package}"
    with pytest.raises(errors.CommandError) as caught:
        await process.run(["nft", "list"], deadline_s=5)
    assert caught.value.resolution == "apt-get install nftables"
    assert way_to("qemu-system-x86_64") == "apt-get install qemu-system-x86"


async def test_a_driver_without_files_to_open_does_not_ask_for_a_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def none_left(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", none_left)
    with pytest.raises(errors.CommandError, match="Too many open files") as caught:
        await process.run(["nft", "list"], deadline_s=5)
    assert "LimitNOFILE" in caught.value.resolution


async def test_a_command_may_be_tried_again_when_somebody_has_killed_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    once = f"[ -e {tmp_path}/f ] || {{ touch {tmp_path}/f; kill -9 $$; }}; echo well"
    done = await process.run(["sh", "-c", once], deadline_s=20, tries=3)
    assert done.stdout == b"well\n"
    assert "sh was killed (SIGKILL)" in caplog.text
    assert "it is tried again (2 of 3)" in caplog.text
    with pytest.raises(errors.CommandError, match="status 3"):
        await process.run(["sh", "-c", "exit 3"], deadline_s=20, tries=2)
    begun = time.monotonic()
    with pytest.raises(errors.CommandError, match=r"longer than 0\.3 s"):
        await process.run(["sleep", "60"], deadline_s=0.3, tries=3)
    assert time.monotonic() - begun < 20, "one deadline for all"


async def test_work_that_was_begun_is_finished_before_a_cancellation_shows() -> None:
    threads, ended = Threads("t", 1), []

    def work() -> None:
        time.sleep(0.1)
        ended.append(True)

    task = asyncio.create_task(threads.run(work))
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [True]
    threads.close()

    async def fails() -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        await finished(fails())


def test_a_forged_log_line_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        for style in ("text", "json"):
            set_up("info", style)
            logging.getLogger("vmdriver.x").info("a\nERROR forged")
            assert len(capsys.readouterr().err.splitlines()) == 1
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    assert parse_level("openshell=debug,x=info") == logging.DEBUG
