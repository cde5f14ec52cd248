"""What guests, images and requests say does nothing to whoever reads it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import grpc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmdriver import errors
from vmdriver.cli.main import main
from vmdriver.cli.terminal import print_table, shown_as_text
from vmdriver.host import console_file, log
from vmdriver.host.visible import visible, visible_lines
from vmdriver.service.interceptor import status_of

EVIL = "\x1b]0;owned\x07\x1b[2Jfine\r\x9b31m\u202eexe\u2028\x00\x7f\ud800"
SHOWN = r"\x1b]0;owned\x07\x1b[2Jfine\r\x9b31m\u202eexe\u2028\x00\x7f\ud800"


@given(st.text(st.characters()))
@example(EVIL)
def test_whatever_is_said_can_be_shown(text: str) -> None:
    assert visible(text).isprintable()
    assert visible_lines(text).replace("\n", "").replace("\t", "").isprintable()
    if text.isprintable():
        assert visible(text) == text


def test_control_characters_are_text_not_gone() -> None:
    assert visible(EVIL) == SHOWN
    assert visible("a\nb", "\n") == "a\nb"
    assert visible_lines("a\r\nb\tc\rd") == "a\nb\tc\\rd"
    assert visible("naïve 漢字 🎉") == "naïve 漢字 🎉"


def test_a_command_writes_none_to_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with shown_as_text():
        print(EVIL)
        print_table(("name",), [(EVIL + "\nforged",)])
    out = capsys.readouterr().out
    assert out == f"{SHOWN}\nname\n{SHOWN}\\nforged\n"


def test_errors_are_shown_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J\u202e\nforged"
    folder = tmp_path / "sandboxes" / "s1"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(f'{{"x": "{evil}"}}')
    assert main(["inspect", "s1", "--state-dir", str(tmp_path)]) == 0
    assert main(["ls", "--bind-socket", f"{tmp_path}/{evil}/s"]) == 2
    assert main(["config", "--config", f"{tmp_path}/{evil}"]) == 2
    found = capsys.readouterr()
    for line in (found.out + found.err).splitlines():
        assert line.isprintable()
        assert not line.startswith("forged")
    assert r"\x1b[2J\u202e" in found.err


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_log_record_is_one_line_that_moves_nothing(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        log.set_up("info", style)
        logging.getLogger("vmdriver").info("a guest says %s\n2026 INFO forged", EVIL)
        try:
            raise ValueError(EVIL)
        except ValueError:
            logging.getLogger("vmdriver").exception("%s", EVIL)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    first, rest = capsys.readouterr().err.split("\n", 1)
    assert "forged" in first
    for line in (first, *rest.splitlines()):
        assert line.isprintable()


def test_a_callers_error_can_be_shown() -> None:
    code, text = status_of(errors.Refused(EVIL))
    assert (code, text) == (grpc.StatusCode.FAILED_PRECONDITION, SHOWN)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], b"one\n\\x1b[31mtwo\n\\x9b\n"),
        (["--raw"], "one\r\n\x1b[31mtwo\r\n\x9b\n".encode()),
    ],
)
def test_a_console_is_raw_only_if_asked_for(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], arguments: list[str], expected: bytes
) -> None:  # fmt: skip
    folder = tmp_path / "sandboxes" / "s1"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{}")
    (folder / "console.log").write_bytes("one\r\n\x1b[31mtwo\r\n\x9b\n".encode())
    options = ["--state-dir", str(tmp_path)]
    assert main(["console", "s1", *arguments, *options]) == 0
    assert capfdbinary.readouterr().out == expected
    assert main(["console", "s1", "--json", *options]) == 0
    found = json.loads(capfdbinary.readouterr().out)["console"]
    assert found == "one\n\\x1b[31mtwo\n\\x9b"


def printed(path: Path, data: bytes) -> None:
    """As QEMU does it."""
    with path.open("ab") as file:
        file.write(data)


def shown(path: Path) -> str:
    return console_file.tail(path, console_file.ROOM)


CEILING = 5 * 2**30 + 4711


def test_a_console_begins_below_a_ceiling_and_takes_no_space(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"earlier")
    for _ in range(2):
        console_file.begin_below(path, CEILING)
        assert shown(path) == "earlier"
    size = path.stat().st_size
    assert CEILING - console_file.ROOM - console_file.LIMIT <= size < CEILING
    assert path.stat().st_blocks * 512 < 65536
    printed(path, b", later")
    reader = console_file.Reader(path)
    assert reader.more() == b"earlier, later"
    assert reader.more() == b""
    printed(path, b"!")
    assert reader.more() == b"!"


def test_a_cut_keeps_the_end_and_the_way_to_the_ceiling(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.touch()
    console_file.begin_below(path, CEILING)
    for number in range(6):
        printed(path, b"x" * 700_000 + str(number).encode())
        console_file.cut(path)
        assert path.stat().st_size < CEILING - console_file.ROOM // 2
        assert path.stat().st_blocks * 512 < 2 * console_file.LIMIT
    assert shown(path).endswith("5")
    assert console_file.Reader(path).more().count(b"x") >= console_file.KEPT - 100


def test_a_ceiling_below_all_room_is_a_console_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"a")
    console_file.begin_below(path, console_file.LIMIT)
    assert path.read_bytes() == b"a"


def test_a_console_that_is_none_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("pipe", "link", "none"):
        console_file.cut(tmp_path / name)
        assert console_file.tail(tmp_path / name) == ""
        with pytest.raises(OSError, match=r"plain file|No such|Too many|Invalid"):
            console_file.begin_below(tmp_path / name, CEILING)
    assert not (tmp_path / "elsewhere").exists()
