"""What commands write: colours and bars on a terminal, the same plain text elsewhere, and nothing
that somebody else's words do to either.
"""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from vmdriver.cli import main
from vmdriver.cli.page import Section, rendered
from vmdriver.cli.progress import Drawn, Step, bars, shown_progress
from vmdriver.cli.terminal import (
    BAD,
    GOOD,
    Styled,
    console,
    print_table,
    say,
    show,
    shown_as_text,
    table,
)

EVIL = "\x1b]0;owned\x07\x1b[2J[bold red]x[/] :smile: \u202e\n[link=http://e]y"
SHOWN = r"\x1b]0;owned\x07\x1b[2J[bold red]x[/] :smile: \u202e\n[link=http://e]y"
ONE_LINE = EVIL.replace("\n", " ")
SHOWN_ON_ONE = SHOWN.replace(r"\n", " ")
ROWS = [("s1", Styled("Ready=True", GOOD)), ("a longer one", "x"), ("漢字", "")]
STYLE = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def on_a_terminal(columns: int = 80) -> Iterator[Callable[[], str]]:
    """Standard output and error are one; gives what was written there."""
    ours, theirs = pty.openpty()
    written = b""
    with (
        os.fdopen(theirs, "w", encoding="utf-8") as stream,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm-256color")
        patch.delenv("NO_COLOR", raising=False)

        def read() -> str:
            nonlocal written
            stream.flush()
            os.set_blocking(ours, False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(ours, 65536):
                    written += data
            return written.decode().replace("\r\n", "\n")

        with (
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
            shown_as_text(),
        ):
            yield read
    os.close(ours)


def test_a_table_is_plain_and_whole_where_nobody_looks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    long = "x" * 500
    print_table(("name", "condition"), [*ROWS, (long, "y")])
    width = len(long)
    assert capsys.readouterr().out.splitlines() == [
        f"{'name'.ljust(width)}  condition",
        f"{'s1'.ljust(width)}  Ready=True",
        f"{'a longer one'.ljust(width)}  x",
        "漢字",
        f"{long}  y",
    ]


def test_a_table_has_colours_on_a_terminal_and_folds_there() -> None:
    with on_a_terminal(columns=30) as written:
        print_table(("name", "condition"), [("a" * 40, Styled("Ready=True", GOOD))])
        text = written()
    assert "\x1b[32mReady=True" in text
    lines = STYLE.sub("", text).splitlines()
    assert all(len(line) <= 30 for line in lines)
    assert sum(line.count("a") for line in lines[1:]) == 41, "nothing is cut off"


def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    with on_a_terminal() as written:
        monkeypatch.setenv("NO_COLOR", "1")
        say(Styled("wrong", BAD))
        print_table(("name",), [(Styled("x", GOOD),)])
        text = written()
    assert "wrong" in text
    assert not re.search(r"\x1b\[[0-9;]*3\dm", text)


def test_what_others_say_is_text_on_a_terminal_and_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write() -> None:
        say("note: ", Styled(ONE_LINE, BAD))
        print_table(("name", "what"), [(EVIL, Styled(EVIL, GOOD))])

    with shown_as_text():
        write()
    plain = capsys.readouterr().out
    assert "\x1b" not in plain
    assert (plain.count(SHOWN), plain.count(SHOWN_ON_ONE)) == (2, 1)
    with on_a_terminal(columns=400) as written:
        write()
        text = STYLE.sub("", written())
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert (text.count(SHOWN), text.count(SHOWN_ON_ONE)) == (2, 1)


def test_a_progress_bar_says_how_far_it_is() -> None:
    def drawn(done: int, total: int) -> str:
        out = io.StringIO()
        with on_a_terminal(columns=120):
            progress = bars(console(error=True))
            Drawn(progress, "preparing x").tell(
                Step("P", "pulling", False, done, total)
            )
            plain = console()
            plain.file, plain.no_color = out, True
            plain.print(progress.get_renderable())
        return STYLE.sub("", out.getvalue())

    assert "%" not in drawn(0, 0)
    assert "preparing x" in drawn(0, 0)
    half = drawn(50, 100)
    assert " 50%" in half
    assert "pulling" in half
    assert half.count("━") == 15
    whole = drawn(200, 100)
    assert "100%" in whole
    assert whole.count("━") == 30


def test_a_bar_goes_and_what_was_told_stays() -> None:
    with on_a_terminal() as written:
        with shown_progress("suspending x") as tell:
            tell(Step("Suspending", ONE_LINE))
            tell(Step("Odd", "a warning", True))
        say("done")
        text = written()
    left = STYLE.sub("", text)
    assert f"Suspending: {SHOWN_ON_ONE}" in left
    assert "! Odd: a warning" in left
    assert "\x1b[?25h" in text, "the cursor is there again"
    assert "suspending x" in left.rpartition("\x1b[?25h")[0]
    assert left.rstrip().endswith("done")


def test_a_pipe_gets_a_line_for_each_step(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress("preparing x") as tell:
        tell(Step("CacheMiss", "x"))
        for done in range(0, 100, 10):
            tell(Step("PullingLayer", f"layer 1, {done}", False, done, 100))
        tell(Step("Odd", "two\nlines", True))
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == [
        "CacheMiss: x",
        "PullingLayer: layer 1, 0",
        "! Odd: two",
        "           lines",
    ]


def test_a_cell_that_is_too_long_for_its_column_is_folded_not_cut() -> None:
    with on_a_terminal(columns=20):
        out = console()
        with out.capture() as captured:
            out.print(table(("id",), [("0123456789" * 4,)]))
    text = STYLE.sub("", captured.get())
    assert "".join(text.split()).removeprefix("id") == "0123456789" * 4


@pytest.mark.parametrize(
    "command",
    [
        *(("--help",), ("ls", "--help"), ("explain", "Ready"), ("config", "--json")),
        ("console", "s1", "--state-dir", "/nowhere"),
        ("exec", "s1", "--state-dir", "/nowhere", "--", "true"),
    ],
)
def test_who_needs_no_library_for_terminals_or_worlds_loads_none(
    command: tuple[str, ...],
) -> None:
    program = (
        "import sys; from vmdriver.cli import main\n"
        f"try: main({list(command)!r})\n"
        "except SystemExit: pass\n"
        "costly = {'rich', 'textual', 'grpc', 'libvirt', 'pyroute2', 'blake3'}\n"
        "found = costly & set(sys.modules)\n"
        "sys.exit(f'loaded: {found}' if found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_long_label_of_a_page_leaves_room_for_what_is_said_of_it() -> None:
    label = "hold:vault:lease:" + "x" * 90
    with on_a_terminal(80) as screen:
        show(rendered([Section("held", [("tap", "while it runs"), (label, "kept")])]))
        text = STYLE.sub("", screen())
    assert "while it runs" in text
    assert "kept" in text
    assert re.sub(r"\s", "", text).count("x") == 90


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1"])
def test_characters_that_the_locale_has_not_are_text(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    with contextlib.redirect_stdout(stream), shown_as_text():
        print("漢")
        print_table(["a"], [["漢字"]])
        console().print("漢")
    stream.flush()
    assert raw.getvalue().decode() == "\\u6f22\na\n\\u6f22\\u5b57\n\\u6f22\n"
    assert stream.errors == "strict", "as it was"


@pytest.mark.parametrize("closed", [(2,), (1,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (("explain", "MemoryExhausted"), 0),
        (("inspect", "s1", "--state-dir", "/nowhere"), 2),
    ],
)
def test_what_goes_to_a_stream_that_is_closed_goes_nowhere(
    closed: tuple[int, ...], command: tuple[str, ...], status: int
) -> None:
    """It is not written to what was opened in its place either, and says nothing of Python's."""
    shut = " ".join(f"{number}>&-" for number in closed)
    program = (
        f"import sys; from vmdriver.cli import main; sys.exit(main({list(command)!r}))"
    )
    words = ["sh", "-c", f'exec "$@" {shut}', "sh", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) is (status == 0 and 1 not in closed)
    assert bool(done.stderr) is (status == 2 and 2 not in closed)


@pytest.mark.parametrize("more", ["--json", "-f", "--raw"])
def test_a_console_that_is_a_terminal_takes_nothing_that_it_would_not_do(
    more: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["console", "s1", "-i", more, "--state-dir", "/nowhere"]) == 2
    assert "console -i takes no --" in capsys.readouterr().err


def test_a_console_that_is_read_is_nobodys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["console", "s1", "--root", "--state-dir", "/nowhere"]) == 2
    assert "--root with -i only" in capsys.readouterr().err
