"""The table of the screen: as many rows as there are, each at its place."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.binding import Binding
from textual.coordinate import Coordinate
from textual.widgets import DataTable

_MANY = 50


class Grid(DataTable[Text]):
    """What changes is drawn where it is: nothing is cleared but where columns change or many rows
    go, so that nobody who looks at a part of it is taken elsewhere.
    """

    BINDINGS = [
        Binding("home", "scroll_top", show=False),
        Binding("end", "scroll_bottom", show=False),
    ]

    def fill(self, header: Sequence[Text], rows: Sequence[Sequence[Text]]) -> None:
        """With these cells, each as wide as its column's header."""
        if [column.label for column in self.ordered_columns] != list(header):
            self.clear(columns=True)
            for cell in header:
                self.add_column(cell, width=len(cell))
        if self.row_count - len(rows) > _MANY:
            self.clear()  # each that is removed is a walk over all
        for number in range(self.row_count, len(rows), -1):
            self.remove_row(self.ordered_rows[number - 1].key)
        there = self.row_count
        for index, cells in enumerate(rows[:there]):
            before = self.get_row_at(index)
            for place, cell in enumerate(cells):
                if before[place] != cell:
                    self.update_cell_at(Coordinate(index, place), cell)
        for cells in rows[there:]:
            self.add_row(*cells)
