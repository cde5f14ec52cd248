"""vmdriver ls: what the running driver lists, once or as it changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmdriver.cli.files import files_of
from vmdriver.cli.terminal import (
    BAD,
    DIM,
    GOOD,
    HEAD,
    WARN,
    Styled,
    Words,
    can_draw,
    cells_of,
    console,
    drawing,
    indented,
    print_json,
    say,
    show,
    table,
    words,
)
from vmdriver.cli.wording import ago, moment
from vmdriver.config import Loaded
from vmdriver.errors import DriverError
from vmdriver.model.record import utc_now
from vmdriver.model.set_aside import STATE_UNREADABLE
from vmdriver.storage.sandboxes.records import read_record

if TYPE_CHECKING:
    from rich.console import RenderableType

Row = Mapping[str, Any]
COLUMNS = ("id", "name", "workspace", "condition", "reason", "since")
_NEEDED_LEAST = ("workspace", "condition", "since", "id")
"""What a terminal that is too narrow does without, first ones first; the reason says more than the
condition.
"""
_NEVER = datetime.min.replace(tzinfo=UTC)
_PASSING = {"Starting", "DependenciesNotReady"}
_AGAIN_S = 1.0
_AWAY = "the driver is away, and is asked again until it is back"


def ls(loaded: Loaded, *, as_json: bool) -> int:
    """What it lists now."""
    from vmdriver.service.client import list_sandboxes

    found = list_sandboxes(loaded.config.gateway.bind_socket)
    if as_json:
        found = [sandbox | {"wall": _wall(loaded, sandbox["id"])} for sandbox in found]
        print_json(found)
        return 0
    show(listing(found, utc_now(), console().width))
    for note in _notes(found):
        say(note)
    return 0


def listing(rows: Sequence[Row], now: datetime, width: int) -> RenderableType:
    """A line for each; a terminal that is too narrow for that has fewer columns."""
    cells = [
        dict(zip(COLUMNS, (*_cells(row), _age(row, now)), strict=True)) for row in rows
    ]
    shown = list(COLUMNS)
    widths = {column: _width(column, cells) for column in COLUMNS}
    for column in _NEEDED_LEAST:
        if sum(widths[column] for column in shown) <= width:
            break
        shown.remove(column)
    return table(shown, [[row[column] for column in shown] for row in cells])


def _width(column: str, rows: Sequence[Mapping[str, Words]]) -> int:
    """With the gap behind it."""
    return max(map(cells_of, (column, *(row[column] for row in rows)))) + 2


def _cells(row: Row) -> tuple[Words, ...]:
    condition = f"{row['type']}={row['status']}" if row["type"] else "-"
    style = _style(row)
    return (
        row["id"],
        row["name"],
        row["workspace"],
        Styled(condition, style),
        Styled(row["reason"], style),
    )


def _age(row: Row, now: datetime) -> str:
    since = _since(row)
    return "-" if since == _NEVER else ago(since, now)


def _style(row: Row) -> str:
    if row["type"] == "Suspended" or row["reason"] == "Deleting":
        return DIM
    if row["status"] == "True":
        return GOOD
    return WARN if row["reason"] in _PASSING else BAD


def _notes(rows: Sequence[Row]) -> list[str]:
    """Of those that cannot be read: what is to be done."""
    return [
        f"note: {row['id']}: {indented(row['message'])}"
        for row in rows
        if row["reason"] == STATE_UNREADABLE
    ]


def _wall(loaded: Loaded, sandbox_id: str) -> list[str] | None:
    """Parts of the wall around its last machine; None where its record cannot be read."""
    try:
        plan = read_record(files_of(loaded, sandbox_id).root).plan
    except (DriverError, OSError):
        return None
    return list(plan.wall) if plan else []


class Watch:
    """What has been told so far. `tell` is given each change, once: a row, or the id of a sandbox
    that is gone.
    """

    def __init__(self, tell: Callable[[Row | str], None]) -> None:
        self._tell = tell
        self._rows: dict[str, Row] = {}
        self.away_since: datetime | None = None

    def rows(self) -> list[Row]:
        """As the driver sorts them: by name, then id."""
        return sorted(self._rows.values(), key=lambda row: (row["name"], row["id"]))

    def take(self, news: Sequence[Row] | Row | str) -> None:
        """Everything there is (of a driver that has come, or come back), one that has changed, or
        the id of one that is gone.
        """
        self.away_since = None
        if isinstance(news, str):
            if self._rows.pop(news, None) is not None:
                self._tell(news)
        elif isinstance(news, Mapping):
            if self._rows.get(news["id"]) != news:
                self._rows[news["id"]] = news
                self._tell(news)
        else:
            for gone in self._rows.keys() - {row["id"] for row in news}:
                self.take(gone)
            for row in news:
                self.take(row)


async def follow(path: Path, watch: Watch, say_away: Callable[[str], None]) -> None:
    """Until it is cancelled. `say_away` is told when the driver goes away, and why. DriverError
    when it was not there to begin with.
    """
    from vmdriver.service.watcher import watch_sandboxes

    known = False
    while True:
        why = "it has ended the stream"
        try:
            async for news in watch_sandboxes(path):
                known = True
                watch.take(news)
        except DriverError as error:
            if not known:
                raise
            why = error.detail or error.message
        if watch.away_since is None:
            watch.away_since = utc_now()
            say_away(why)
        await asyncio.sleep(_AGAIN_S)


def ls_watch(loaded: Loaded, *, as_json: bool) -> int:
    """As it changes, until it is interrupted: a table that is drawn again and again on a terminal;
    elsewhere, and for machines, a line for each change.
    """
    path = loaded.config.gateway.bind_socket
    if as_json or not can_draw():
        watch = Watch(_json_line if as_json else _plain_line)
        # Not a blocking call of gRPC's, in which an interruption may be lost.
        asyncio.run(follow(path, watch, lambda why: say(f"{_AWAY}: {why}", error=True)))
        return 0
    watch = Watch(lambda _: None)
    with _drawn(watch):
        asyncio.run(follow(path, watch, lambda _: None))
    return 0


def _json_line(news: Row | str) -> None:
    row = {"id": news, "gone": True} if isinstance(news, str) else news
    print(json.dumps(row, default=str), flush=True)


def _plain_line(news: Row | str) -> None:
    if isinstance(news, str):
        print(f"{utc_now():%Y-%m-%d %H:%M:%S} UTC  {news}  is gone", flush=True)
        return
    since = _since(news)
    when = "-" if since == _NEVER else f"{since:%Y-%m-%d %H:%M:%S} UTC"
    cells = (cell if isinstance(cell, str) else cell.text for cell in _cells(news))
    # One line, whatever is in it: the stream shows every other control character as text.
    line = "  ".join([when, *cells])
    print(line.replace("\n", "\\n"), flush=True)


@contextmanager
def _drawn(watch: Watch) -> Iterator[None]:
    from rich.live import Live

    out = console()
    live = Live(
        console=out,
        get_renderable=lambda: _picture(watch, *out.size),
        refresh_per_second=2,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with drawing(out), live:
        yield


def _picture(watch: Watch, width: int, height: int) -> RenderableType:
    """In that room. What everybody must know is above, where nothing is cut off."""
    from rich.console import Group

    now, rows = utc_now(), watch.rows()
    parts: list[RenderableType] = []
    if watch.away_since is not None:
        since = moment(watch.away_since, now)
        parts.append(words(Styled(f"{_AWAY}: since {since}", WARN)))
    shown = latest(rows, height - len(parts) - 2)
    if len(shown) < len(rows):
        text = f"{len(rows)} sandboxes; these {len(shown)} changed last"
        parts.append(words(Styled(text, HEAD)))
    parts.append(listing(shown, now, width))
    parts += [words(note, keep="\n") for note in _notes(shown)]
    return Group(*parts)


def latest(rows: Sequence[Row], room: int) -> list[Row]:
    """So many of them, in their order: all, or those that changed last, and a line less."""
    if len(rows) <= room:
        return list(rows)
    by_change = sorted(rows, key=_since, reverse=True)
    kept = {row["id"] for row in by_change[: max(1, room - 1)]}
    return [row for row in rows if row["id"] in kept]


def _since(row: Row) -> datetime:
    """The beginning of time where a driver behind a composed one does not say it."""
    try:
        return datetime.fromisoformat(row["since"]).astimezone(UTC)
    except ValueError:
        return _NEVER
