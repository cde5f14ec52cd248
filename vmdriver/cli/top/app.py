"""The program behind the screen."""

from __future__ import annotations

from textual.app import App
from textual.binding import Binding
from textual.events import Key

from vmdriver.cli.top.overview import Overview
from vmdriver.config import Loaded
from vmdriver.service.observer import Observer


class Top(App[None]):
    """Shows the overview; colours are the terminal's own sixteen."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [Binding("ctrl+c", "quit", priority=True, show=False)]
    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    """

    def __init__(self, loaded: Loaded, observer: Observer, interval_s: float) -> None:
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self._overview = Overview(loaded, observer, interval_s)

    def on_mount(self) -> None:
        """Begin."""
        self.push_screen(self._overview)

    def on_key(self, event: Key) -> None:
        """It was bound to nothing where it was typed."""
        if self._overview.is_mounted:
            self._overview.typed(event)
