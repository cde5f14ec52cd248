"""The program behind the screen."""

from __future__ import annotations

import asyncio
import signal
from functools import partial

from textual.app import App
from textual.binding import Binding
from textual.events import Key

from vmdriver.cli.top.overview import Overview
from vmdriver.config import Loaded
from vmdriver.service.observer import Observer


class Top(App[None]):
    """Shows the overview; colours are the terminal's own sixteen."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [
        Binding("ctrl+c", "quit", priority=True, show=False),
        Binding("ctrl+z", "suspend_process", priority=True, show=False),
    ]
    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    """

    def __init__(self, loaded: Loaded, observer: Observer, interval_s: float) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self._overview = Overview(loaded, observer, interval_s)

    def on_mount(self) -> None:
        """Begin. Who ends us leaves the terminal as it was."""
        loop, number = asyncio.get_running_loop(), signal.SIGTERM
        loop.add_signal_handler(number, partial(self.exit, return_code=128 + number))
        self.push_screen(self._overview)

    def on_key(self, event: Key) -> None:
        """It was bound to nothing where it was typed."""
        if self._overview.is_mounted:
            self._overview.typed(event)
