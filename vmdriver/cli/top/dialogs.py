"""What lies over the overview: questions, and pages to read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Input, Static

from vmdriver.cli.terminal import BAD, HEAD, Styled, words
from vmdriver.errors import DriverError

if TYPE_CHECKING:
    from rich.console import RenderableType

_BOX = """
    align: center middle;
    & > Vertical {
        width: 64; max-width: 100%; height: auto; padding: 1 2;
        border: ascii ansi_default; background: ansi_default; color: ansi_default;
    }
"""


class Ask(ModalScreen[bool]):
    """A question that only `y` says yes to."""

    CSS = f"Ask {{ {_BOX} }}"
    BINDINGS = [
        Binding("y", "answer(True)", show=False),
        Binding("n,q,escape,enter", "answer(False)", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical():
            yield Static(words(self._question))
            keys = (Styled("y", HEAD), " yes   ", Styled("n", HEAD), " no")
            yield Static(words("\n", *keys, keep="\n"))

    def action_answer(self, yes: bool) -> None:
        """It was answered."""
        self.dismiss(yes)


class Prompt(ModalScreen[str]):
    """Asks for a text; "" when it is not given."""

    CSS = f"Prompt {{ {_BOX} }} Prompt Input {{ border: none; height: 1; padding: 0; }}"
    BINDINGS = [Binding("escape", "leave", show=False)]

    def __init__(self, question: str, first: str) -> None:
        super().__init__()
        self._question, self._first = question, first

    def compose(self) -> ComposeResult:
        """The box."""
        with Vertical():
            yield Static(words(self._question, "\n", keep="\n"))
            yield Input(self._first, select_on_focus=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """It was given."""
        self.dismiss(event.value.strip())

    def action_leave(self) -> None:
        """It was not."""
        self.dismiss("")


class Reading(Screen[None]):
    """A page. `make` says what is on it, and is asked again each `again_s`, if that is not 0;
    `end`: it begins at its end, and goes with that.
    """

    BINDINGS = [Binding("escape,q", "leave", show=False)]
    CSS = """
    Reading VerticalScroll { scrollbar-size-vertical: 1; }
    Reading .bar { height: 1; text-style: reverse; }
    """

    def __init__(
        self,
        title: str,
        make: Callable[[], Awaitable[RenderableType]],
        *,
        again_s: float = 0.0,
        end: bool = False,
    ) -> None:
        super().__init__()
        self._title, self._make = title, make
        self._again_s, self._end = again_s, end

    def compose(self) -> ComposeResult:
        """Title, page, keys."""
        yield Static(words(f" {self._title}"), classes="bar")
        with VerticalScroll():
            yield Static(id="page")
        yield Static(words(" up, down, page up, page down; q back"), classes="bar")

    async def on_mount(self) -> None:
        """Read it."""
        await self._read()
        if self._again_s:
            self.set_interval(self._again_s, self._read)

    async def _read(self) -> None:
        scroll, page = self.query_one(VerticalScroll), self.query_one("#page", Static)
        follows = self._end and scroll.scroll_offset.y >= scroll.max_scroll_y
        try:
            page.update(await self._make())
        except (DriverError, OSError) as error:
            text = error.text() if isinstance(error, DriverError) else str(error)
            page.update(words(Styled(text, BAD), keep="\n"))
        except Exception as error:  # noqa: BLE001 - a page does not end the screen
            text = f"this page cannot be made, which is a fault of ours: {error!r}"
            page.update(words(Styled(text, BAD)))
        if follows:
            scroll.scroll_end(animate=False)

    def action_leave(self) -> None:
        """Back to where it was opened."""
        self.dismiss()
