"""How far something long is, on standard error: a bar on a terminal, elsewhere a line for each
step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmdriver.cli.terminal import (
    WARN,
    Styled,
    Words,
    can_draw,
    console,
    drawing,
    indented,
    say,
    words,
)
from vmdriver.host.visible import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_WIDTH = 30


@dataclass(frozen=True)
class Step:
    """An event of what is under way. `total`: bytes, 0 when that is not known."""

    reason: str
    message: str
    warning: bool = False
    done: int = 0
    total: int = 0


Tell = Callable[[Step], None]


@contextmanager
def shown_progress(what: str) -> Iterator[Tell]:
    """Meanwhile `what` is under way, whose steps are told to what this gives."""
    if not can_draw(error=True):
        yield _Lines().tell
        return
    out = console(error=True)
    with drawing(out), bars(out) as progress:
        yield Drawn(progress, what).tell


def bars(out: Console) -> Progress:
    """For one task on that terminal, gone when it ends."""
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )

    return Progress(
        SpinnerColumn("line"),
        TimeElapsedColumn(),
        BarColumn(_WIDTH),
        TaskProgressColumn(),
        TextColumn("{task.description}", markup=False),
        console=out,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


class Drawn:
    """A bar. Steps that are events stay above it."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress, self._what = progress, visible(what)
        self._task = progress.add_task(self._what, total=None)

    def tell(self, step: Step) -> None:
        """Draw it."""
        if step.total:
            self._progress.update(
                self._task,
                completed=min(step.done, step.total),
                total=step.total,
                description=visible(step.message),
            )
            return
        (task,) = self._progress.tasks
        task.total = None  # `update` takes that for no change
        self._progress.update(self._task, completed=0, description=self._what)
        # With the bar's own console, which knows where the bar is.
        text = words(_line(step), keep="\n")
        self._progress.console.print(text, soft_wrap=True)


class _Lines:
    """One for each event; of what has a size, one when it begins."""

    def __init__(self) -> None:
        self._sized = ""

    def tell(self, step: Step) -> None:
        if not step.total or step.reason != self._sized:
            say(_line(step), error=True)
        self._sized = step.reason if step.total else ""


def _line(step: Step) -> Words:
    head = f"{'! ' if step.warning else ''}{step.reason}"
    line = f"{head}: {indented(step.message)}"
    return Styled(line, WARN) if step.warning else line
