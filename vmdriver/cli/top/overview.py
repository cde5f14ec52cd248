"""The first screen of vmdriver top: all sandboxes, and keys for what is done with one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.events import Key, Resize
from textual.screen import Screen
from textual.widgets import Input, Static

from vmdriver.cli.files import files_of
from vmdriver.cli.inspect import inspection
from vmdriver.cli.page import page, rendered
from vmdriver.cli.terminal import BAD, WARN, Styled, Words, table, words
from vmdriver.cli.top.dialogs import Ask, Prompt, Reading
from vmdriver.cli.top.grid import Grid
from vmdriver.cli.top.rows import (
    ORDERS,
    Column,
    History,
    chosen,
    columns,
    event_line,
    headlines,
    heights,
)
from vmdriver.cli.wording import size
from vmdriver.config import Loaded
from vmdriver.errors import DriverError
from vmdriver.host import console_file
from vmdriver.model.picture import Picture, SeenSandbox
from vmdriver.model.record import utc_now
from vmdriver.service.observer import Observer

if TYPE_CHECKING:
    from rich.console import RenderableType

_AGAIN_S = 1.0
_PAGE_AGAIN_S = 2.0
_CONSOLE_BYTES = 64 * 1024
_KEYS = (
    ("i", "inspect", "all that is known of it"),
    ("c", "console", "what its guest prints, as it comes"),
    ("s", "suspend", "put it away with its memory"),
    ("r", "resume", "bring it back"),
    ("n", "snapshot", "take a snapshot; it asks for a name"),
    ("d", "delete", "delete it with its disk and its snapshots; it asks first"),
    ("/", "filter", "show those that have a text in name, id, workspace or phase"),
    ("o", "order", f"sort by {', '.join(ORDERS)}, in turn"),
    ("t", "templates", "templates, and machines that wait on them"),
    ("question_mark", "keys", "this page"),
    ("q", "quit", "end; the driver and its machines go on"),
)
_SHOWN = "i inspect c console s suspend r resume n snapshot d delete / filter ? q quit"
_SHOWN_NARROW = "? keys  q quit  i inspect  d delete"


class Overview(Screen[None]):
    """`loaded`: where the sandboxes' files are, for pages that are made of them."""

    BINDINGS = [Binding(key, name, show=False) for key, name, _ in _KEYS]
    CSS = """
    Overview Static { text-wrap: nowrap; text-overflow: clip; }
    Overview DataTable {
        height: 1fr; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0;
        background: ansi_default; color: ansi_default;
    }
    Overview DataTable > .datatable--header {
        background: ansi_default; color: ansi_default; text-style: bold underline;
    }
    Overview DataTable > .datatable--cursor {
        background: ansi_default; color: ansi_default; text-style: reverse;
    }
    Overview Input { display: none; border: none; height: 1; padding: 0; }
    Overview #state { height: auto; max-height: 4; text-wrap: wrap; }
    Overview #keys { height: 1; text-style: reverse; }
    """

    def __init__(self, loaded: Loaded, observer: Observer, interval_s: float) -> None:
        super().__init__()
        self._loaded, self._observer = loaded, observer
        self._interval_s = interval_s
        self._history = History()
        self._order = next(iter(ORDERS))
        self._wanted = ""
        self._said: Words = ""
        self._chosen = ""
        self._away = "the driver is asked for the first time"
        self._ids: list[str] = []

    def compose(self) -> ComposeResult:
        """From above to below."""
        yield Static(id="head")
        yield Grid(cursor_type="row", cell_padding=1)
        asked = "text to look for; enter: keep, escape: all"
        yield Input(placeholder=asked, select_on_focus=False)
        yield Static(id="state")
        yield Static(id="events")
        yield Static(id="keys")

    def on_mount(self) -> None:
        """Begin to watch."""
        self._table.focus()
        self.run_worker(self._watch(), exit_on_error=True)

    @property
    def _table(self) -> Grid:
        return self.query_one(Grid)

    async def _watch(self) -> None:
        """Again and again, for as long as the screen is there."""
        while True:
            why = "it has ended"
            try:
                async for picture in self._observer.pictures(self._interval_s):
                    self._take(picture)
            except DriverError as error:
                why = error.detail or error.message
            since = f"{utc_now():%H:%M:%S} UTC"
            if not self._away:
                self._away = f"the driver is away since {since}, and is asked again"
            elif self._history.now is None:
                self._away = f"no driver answers, and is asked again: {why}"
            self._draw_lines()
            await asyncio.sleep(_AGAIN_S)

    def _take(self, picture: Picture) -> None:
        self._history.take(picture)
        if self._away:  # what was said of it meanwhile is true no more
            self._away = self._said = ""
        self._draw()

    # --- drawing

    def on_resize(self, _event: Resize) -> None:
        """The terminal has another size."""
        room = heights(self.size.height)
        self.query_one("#head").styles.height = room.head
        events = self.query_one("#events")
        events.styles.height, events.display = room.events, room.events > 0
        keys = _SHOWN if self.size.width >= len(_SHOWN) else _SHOWN_NARROW
        self.query_one("#keys", Static).update(words(keys))
        self._draw()

    def _draw(self) -> None:
        shown = chosen(self._history.rows(), self._order, self._wanted)
        selected = self._selected()
        now = self._history.now.at if self._history.now else utc_now()
        fitting = columns(self.size.width)
        cells = [
            [_cell(column, column.cell(row, now)) for column in fitting]
            for row in shown
        ]
        self._table.fill([_cell(column, column.name) for column in fitting], cells)
        ids, index = [row.seen.id for row in shown], self._table.cursor_row
        if selected is not None and selected.id in ids:
            index = ids.index(selected.id)
        index = max(0, min(index, len(ids) - 1))
        self._ids = ids
        self._table.move_cursor(row=index, animate=False)
        self._chosen = ids[index] if ids else ""
        self._draw_lines()

    def _draw_lines(self) -> None:
        picture, lines = self._history.now, list[Words]()
        self.query_one("#state", Static).update(self._state())
        if picture is not None:
            lines += headlines(picture, self._history.rows())
        if self._away:
            lines[:1] = [Styled(self._away, BAD)]
        self.query_one("#head", Static).update(_lines(lines))
        if picture is None:
            return
        names, room = self._history.names, heights(self.size.height).events
        told = [event_line(e, names) for e in picture.events[-room:] if room]
        self.query_one("#events", Static).update(_lines(told))

    def _state(self) -> Text:
        filtered = f", with {self._wanted!r}" if self._wanted else ""
        start = f"by {self._order}{filtered}  "
        if self._said:
            return words(start, self._said)
        seen = self._selected()
        line = words(start, f"{seen.name}: {seen.message}" if seen else "")
        line.truncate(self.size.width, overflow="ellipsis")  # its page has the whole
        return line

    def _selected(self) -> SeenSandbox | None:
        """The one that the cursor is on."""
        picture, index = self._history.now, self._table.cursor_row
        if picture is None or not 0 <= index < len(self._ids):
            return None
        name = self._ids[index]
        return next((seen for seen in picture.sandboxes if seen.id == name), None)

    def on_data_table_row_highlighted(self) -> None:
        """The cursor was moved."""
        selected = self._selected()
        if selected is not None and selected.id != self._chosen:
            self._chosen, self._said = selected.id, ""
            self._draw_lines()

    # --- keys

    def on_data_table_row_selected(self) -> None:
        """Enter."""
        self.action_inspect()

    def action_inspect(self) -> None:
        """Its page, as `vmdriver inspect` prints it."""
        if (seen := self._selected()) is not None:

            async def make() -> RenderableType:
                found = await asyncio.to_thread(inspection, self._loaded, seen.id)
                return rendered(page(seen.id, found, utc_now()))

            title = f"{seen.name}  {seen.id}"
            self.app.push_screen(Reading(title, make, again_s=_PAGE_AGAIN_S))

    def action_console(self) -> None:
        """What its guest prints."""
        if (seen := self._selected()) is not None:

            def tail() -> str:
                path = files_of(self._loaded, seen.id).console
                return console_file.tail(path, _CONSOLE_BYTES)

            async def make() -> RenderableType:
                return words(await asyncio.to_thread(tail), keep="\n\t")

            title = f"console of {seen.name}  {seen.id}"
            self.app.push_screen(Reading(title, make, again_s=_AGAIN_S, end=True))

    def action_suspend(self) -> None:
        """Without asking: `r` brings it back."""
        if (seen := self._selected()) is not None:
            self._do(seen, "suspending", self._observer.suspend(seen.id))

    def action_resume(self) -> None:
        """From memory, or from its disk."""
        if (seen := self._selected()) is not None:
            self._do(seen, "resuming", self._observer.resume(seen.id))

    def action_snapshot(self) -> None:
        """Ask for its name first."""
        if (seen := self._selected()) is not None:

            def named(name: str | None) -> None:
                if name:
                    work = self._observer.snapshot(seen.id, name)
                    self._do(seen, f"taking snapshot {name}", work)

            first = f"{utc_now():%Y-%m-%d-%H%M%S}"
            question = f"Name of a snapshot of {seen.name}"
            self.app.push_screen(Prompt(question, first), named)

    def action_delete(self) -> None:
        """Ask first."""
        if (seen := self._selected()) is not None:

            def answered(yes: bool | None) -> None:
                if yes:
                    self._do(seen, "deleting", self._observer.delete(seen.id))

            question = (
                f"Delete {seen.name} ({seen.id}) with its disk and its snapshots?"
            )
            self.app.push_screen(Ask(question), answered)

    def _do(self, seen: SeenSandbox, what: str, work: Awaitable[None]) -> None:
        """Begin it; its end is said. It goes on where the screen ends meanwhile."""

        async def done() -> None:
            try:
                await work
            except DriverError as error:
                self._say(Styled(f"{what} {seen.name}: {error.text()}", BAD))
            else:
                self._say(f"{what} {seen.name}: done")

        self._say(Styled(f"{what} {seen.name} ...", WARN))
        self.run_worker(done())

    def _say(self, text: Words) -> None:
        self._said = text
        self._draw_lines()

    def action_order(self) -> None:
        """The next one."""
        names = list(ORDERS)
        self._order = names[(names.index(self._order) + 1) % len(names)]
        self._draw()

    def action_templates(self) -> None:
        """A page of them."""

        async def make() -> RenderableType:
            found = self._history.now.templates if self._history.now else ()
            rows = [
                (
                    t.key,
                    t.image_digest[:19],
                    f"{t.vcpus} x {t.memory_mib} MiB",
                    size(t.stored),
                    str(t.waiting),
                )
                for t in found
            ]
            return table(("key", "image", "shape", "stored", "waiting"), rows)

        self.app.push_screen(Reading("templates", make, again_s=_AGAIN_S))

    def action_keys(self) -> None:
        """A page of them."""

        async def make() -> RenderableType:
            rows = [(k if len(k) == 1 else "?", n, t) for k, n, t in _KEYS]
            return table(("key", "", ""), rows)

        self.app.push_screen(Reading("keys", make))

    def action_quit(self) -> None:
        """Leave."""
        self.app.exit()

    # --- filter

    def action_filter(self) -> None:
        """Open its line."""
        line = self.query_one(Input)
        line.display = True
        self.set_focus(line)

    def typed(self, event: Key) -> None:
        """A key that nobody has taken: typed on before the line was there, it belongs to it."""
        line = self.query_one(Input)
        if line.display and self.is_current and event.is_printable and event.character:
            line.insert_text_at_cursor(event.character)
            event.prevent_default()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show those at once."""
        self._wanted = event.value.strip()
        self._draw()

    def on_input_submitted(self) -> None:
        """Keep it."""
        self.query_one(Input).display = False
        self.set_focus(self._table)

    def key_escape(self) -> None:
        """All again."""
        self.query_one(Input).value = ""
        self.on_input_submitted()


def _cell(column: Column, value: Words) -> Text:
    text = words(value)
    text.truncate(column.width, overflow="ellipsis")
    text.align("left" if column.left else "right", column.width)
    return text


def _lines(lines: Sequence[Words]) -> Text:
    return Text("\n").join(words(line) for line in lines)
