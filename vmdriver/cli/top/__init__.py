"""vmdriver top: a screen with the sandboxes of a running driver, what they use, and keys for what
an operator does with them. It needs no mouse, no colours, and 80 columns by 24 lines.
"""

from __future__ import annotations

import contextlib
import sys

from vmdriver.cli.terminal import can_draw
from vmdriver.config import Loaded
from vmdriver.config.views import admin_socket
from vmdriver.errors import ConfigError
from vmdriver.service.observer import Observer


def top(loaded: Loaded, interval_s: float) -> int:
    """Until `q`. ConfigError where there is no terminal."""
    # Not the streams as commands have them: the screen writes to the process's own.
    streams = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    there = all(stream is not None and stream.isatty() for stream in streams)
    if not there or not can_draw():
        raise ConfigError(
            "top needs a terminal, and one that is not dumb",
            resolution="elsewhere, use `vmdriver ls --watch` or the metrics",
        )
    from vmdriver.cli.top.app import Top

    gateway = loaded.config.gateway.bind_socket
    observer = Observer(admin_socket(loaded.config), gateway)
    screen = Top(loaded, observer, interval_s)
    with contextlib.redirect_stdout(streams[1]), contextlib.redirect_stderr(streams[2]):
        screen.run(mouse=False)
    return screen.return_code or 0
