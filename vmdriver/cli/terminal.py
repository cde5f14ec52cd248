"""Where commands write: what a guest, an image or a request has said does nothing to a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from vmdriver.host.visible import visible


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
    """Standard output and error meanwhile."""
    with (
        contextlib.redirect_stdout(cast(TextIO, _Shown(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, _Shown(sys.stderr))),
    ):
        yield


def write_raw(data: bytes) -> None:
    """Every byte as it is, to standard output."""
    stream = sys.stdout
    stream = stream.as_it_is if isinstance(stream, _Shown) else stream
    stream.flush()
    stream.buffer.write(data)
    stream.buffer.flush()


def indented(text: str) -> str:
    """Lines behind a heading: one of somebody else's cannot be taken for ours."""
    return text.replace("\n", "\n           ")
