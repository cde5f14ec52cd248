"""Where commands write: what a guest, an image or a request has said does nothing to a terminal.

Tables, colours and bars are rich's, which is loaded by the commands that show some. On a terminal
they obey NO_COLOR and TERM; whatever else standard output is gets the same plain text, as wide as
it needs.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from vmdriver.config.sources import terminal_kind
from vmdriver.host.visible import visible, visible_lines

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

GOOD, WARN, BAD, DIM, HEAD = "green", "yellow", "bold red", "dim", "bold"
"""Styles, as rich names them."""
_DUMB = {"dumb", "unknown"}
"""Terminals that only write on, as rich has it."""
_UNBOUNDED = 2**20
"""Columns of what is no terminal: nothing is folded there."""


class _Shown:
    """A stream that takes no control characters but line ends. The others are written as text."""

    def __init__(self, stream: TextIO) -> None:
        self.as_it_is = stream

    def write(self, text: str) -> int:
        self.as_it_is.write(visible(text, "\n"))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.as_it_is, name)


@contextlib.contextmanager
def shown_as_text() -> Iterator[None]:
    """Standard output and error meanwhile. Characters that are not in the locale's set are written
    as text too, by rich as well. What goes to one that was closed before we began goes nowhere.
    """
    with (
        _there(sys.stdout) as output,
        _there(sys.stderr) as errors,
        _every_character(output),
        contextlib.redirect_stdout(cast(TextIO, _Shown(output))),
        contextlib.redirect_stderr(cast(TextIO, _Shown(errors))),
    ):
        yield


@contextlib.contextmanager
def _there(stream: TextIO | None) -> Iterator[TextIO]:
    if stream is not None:
        yield stream
        return
    # Its number is taken as well: what is opened next is not written to by mistake.
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        yield nowhere


@contextlib.contextmanager
def _every_character(stream: TextIO) -> Iterator[None]:
    """Standard error has that of itself."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors or "strict"
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, OSError):  # closed, or nobody reads it
            stream.reconfigure(errors=before)


def _as_it_is(stream: TextIO) -> TextIO:
    return stream.as_it_is if isinstance(stream, _Shown) else stream


def write_raw(data: bytes) -> None:
    """Every byte as it is, to standard output."""
    stream = _as_it_is(sys.stdout)
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


def guests_writers(
    *, shown: bool
) -> tuple[Callable[[bytes], None], Callable[[bytes], None]]:
    """What write a guest's output and errors to ours: as it is, or, where `shown`, to a terminal
    as text that does nothing to it.
    """
    return _writer(sys.stdout, shown=shown), _writer(sys.stderr, shown=shown)


def _writer(stream: TextIO, *, shown: bool) -> Callable[[bytes], None]:
    plain = _as_it_is(stream)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    shown = shown and plain.isatty()

    def write(data: bytes) -> None:
        if shown:
            plain.write(visible_lines(decoder.decode(data)))
            plain.flush()
            return
        plain.flush()
        plain.buffer.write(data)
        plain.buffer.flush()

    return write


def indented(text: str) -> str:
    """Lines behind a heading: one of somebody else's cannot be taken for ours."""
    return text.replace("\n", "\n           ")


def is_terminal(*, error: bool = False) -> bool:
    """Whether somebody looks at standard output, or at standard error."""
    stream = sys.stderr if error else sys.stdout
    return stream is not None and stream.isatty()


def can_draw(*, error: bool = False) -> bool:
    """The same, and it can write where it likes: else whatever is drawn comes at the end."""
    return is_terminal(error=error) and terminal_kind() not in _DUMB


def console(*, error: bool = False) -> Console:
    """rich's, on standard output or error. What others have said goes in as `words` only: it
    writes to the stream itself, and takes escape sequences for what they are.
    """
    from rich.console import Console

    terminal = is_terminal(error=error)
    return Console(
        file=_as_it_is(sys.stderr if error else sys.stdout),
        force_terminal=terminal,
        color_system="auto" if terminal else None,
        width=None if terminal else _UNBOUNDED,
        markup=False,
        highlight=False,
        emoji=False,
    )


@contextlib.contextmanager
def drawing(out: Console) -> Iterator[None]:
    """Meanwhile something is drawn there, and the cursor is hidden: it is shown while we are
    stopped (Ctrl-Z), and when a signal ends us, which is a SystemExit. For a program's main thread.
    """

    def stop(_number: int, _frame: object) -> None:
        out.show_cursor()
        os.kill(os.getpid(), signal.SIGSTOP)
        out.show_cursor(show=False)

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    handlers = {signal.SIGTSTP: stop, signal.SIGTERM: end, signal.SIGHUP: end}
    known = {}
    for number, handler in handlers.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's
            known[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in known.items():
            signal.signal(number, before)


@dataclass(frozen=True)
class Styled:
    """A text that has a style on a terminal."""

    text: str
    style: str


Words = str | Styled
_LEVELS = {"ok": GOOD, "warn": WARN, "fail": BAD}


def leveled(level: str) -> Styled:
    """What a check has come to, in a column of its own."""
    return Styled(f"{level:4}", _LEVELS[level])


def words(*parts: Words, keep: str = "") -> Text:
    """For rich, with everything that is not printable, but for what is in `keep`, as an escape;
    brackets are brackets.
    """
    from rich.text import Text

    found = Text()
    for part in parts:
        text, style = (part, "") if isinstance(part, str) else (part.text, part.style)
        found.append(visible(text, keep), style)
    return found


def cells_of(part: Words) -> int:
    """Columns that it takes."""
    return words(part).cell_len


def say(*parts: Words, error: bool = False) -> None:
    """A line of these, one after the other, on standard output or error."""
    if is_terminal(error=error):
        text = words(*parts, keep="\n")
        console(error=error).print(text, soft_wrap=True)
        return
    texts = [part if isinstance(part, str) else part.text for part in parts]
    print("".join(texts), file=sys.stderr if error else sys.stdout, flush=error)


def show(renderable: RenderableType) -> None:
    """Something of rich's, on standard output. No line ends in blanks, except on a terminal."""
    out = console()
    if out.is_terminal:
        out.print(renderable)
        return
    with out.capture() as captured:
        out.print(renderable)
    for line in captured.get().split("\n")[:-1]:
        print(line.rstrip(" "))


def print_json(value: Any) -> None:
    """One document, for machines."""
    print(json.dumps(value, indent=2, default=str))


def table(header: Sequence[str], rows: Sequence[Sequence[Words]]) -> RenderableType:
    """Columns as wide as their longest cell; folded where a terminal is too narrow."""
    from rich.table import Table

    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=HEAD)
    for name in header:
        found.add_column(name, overflow="fold")
    for row in rows:
        found.add_row(*(words(cell) for cell in row))
    return found


def print_table(header: Sequence[str], rows: Sequence[Sequence[Words]]) -> None:
    """The same, printed: a line for each row where there is room."""
    show(table(header, rows))
