"""exec, console -i: an operator's command or terminal in a sandbox's guest."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from vmdriver.cli.terminal import guests_writers, is_terminal
from vmdriver.config import Loaded
from vmdriver.config.sources import terminal_kind
from vmdriver.config.views import exec_socket
from vmdriver.errors import ConfigError
from vmdriver.host.raw_terminal import raw
from vmdriver.host.visible import visible
from vmdriver.service.streams import client
from vmdriver.service.streams.client import Here, Left

_BROKEN_PIPE = 128 + signal.SIGPIPE
_LEAVE = b"\x1d"
"""Ctrl-]"""
_SHELL = "if [ -x /bin/bash ]; then exec /bin/bash -l; fi; exec /bin/sh -l"


def run(loaded: Loaded, arguments: Any) -> int:
    """exec, console -i."""
    if arguments.command == "console":
        return console(loaded, arguments.id, as_root=arguments.root)
    return run_command(loaded, arguments)


def run_command(loaded: Loaded, arguments: Any) -> int:
    """Its exit code. Input, output and errors are ours. A terminal is shown control characters as
    text, unless `--raw`; whatever else takes the output gets the guest's own bytes.
    """
    out, err = guests_writers(shown=not arguments.raw)
    asked = {
        "sandbox": arguments.id,
        "words": list(arguments.words),
        "as_root": arguments.root,
        "timeout_s": arguments.timeout,
    }
    # Where it is closed, its number is soon something else's.
    closed = sys.stdin is None
    stdin = os.open(os.devnull, os.O_RDONLY) if closed else sys.stdin.fileno()
    here = Here(stdin=stdin, out=out, err=err)
    try:
        return client.run(exec_socket(loaded.config), asked, here)
    except Left:
        return _BROKEN_PIPE


def console(loaded: Loaded, sandbox: str, *, as_root: bool) -> int:
    """A shell of the guest's on this terminal, until it ends or Ctrl-] is pressed."""
    stdin = sys.stdin.fileno() if sys.stdin is not None else -1
    if not (os.isatty(stdin) and is_terminal()):
        raise ConfigError(
            "console -i needs a terminal",
            resolution="use vmdriver exec for a program's input and output",
        )
    asked: dict[str, Any] = {
        "sandbox": sandbox,
        "words": ["/bin/sh", "-c", _SHELL],
        "as_root": as_root,
        "alone": True,
        "term": terminal_kind(),
        "window": dict(zip(("rows", "columns"), _window(), strict=True)),
    }
    user = "root" if as_root else "sandbox"
    text = (
        f"a shell of {visible(sandbox)} as {user}, noted in the driver's log; Ctrl-] ends it. What "
        "comes is the guest's own bytes: what they do to a terminal, they do"
    )
    out, err = guests_writers(shown=False)
    here = Here(
        stdin=stdin,
        out=out,
        err=err,
        begun=lambda: err(f"{text}\r\n".encode()),
        keys=_keys,
        window=_window,
    )
    try:
        with raw(stdin):
            code = client.run(exec_socket(loaded.config), asked, here)
    except Left:
        code = 0
    print("\nthe terminal is yours again", file=sys.stderr)
    return code


def _keys(data: bytes) -> bytes | None:
    """A terminal that has hung up leaves, too."""
    return None if not data or _LEAVE in data else data


def _window() -> tuple[int, int]:
    try:
        found = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return 24, 80
    return min(found.lines, 9999), min(found.columns, 9999)
