"""vmdriver ls: what the running driver lists, once or as it changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmdriver.cli.files import files_of
from vmdriver.cli.terminal import (
    BAD,
    DIM,
    GOOD,
    WARN,
    Styled,
    Words,
    console,
    indented,
    is_terminal,
    print_json,
    print_table,
    say,
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
_COLUMNS = ("id", "name", "workspace", "condition", "reason")
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
    print_table(_COLUMNS, [_cells(sandbox) for sandbox in found])
    for note in _notes(found):
        say(note)
    return 0


def _cells(row: Row) -> tuple[Words, ...]:
    condition = f"{row['type']}={row['status']}"
    return (
        row["id"],
        row["name"],
        row["workspace"],
        Styled(condition, _style(row)),
        row["reason"],
    )


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
    if as_json or not is_terminal():
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
    since = datetime.fromisoformat(news["since"])
    cells = (cell if isinstance(cell, str) else cell.text for cell in _cells(news))
    # One line, whatever is in it: the stream shows every other control character as text.
    line = "  ".join([f"{since:%Y-%m-%d %H:%M:%S} UTC", *cells])
    print(line.replace("\n", "\\n"), flush=True)


@contextmanager
def _drawn(watch: Watch) -> Iterator[None]:
    from rich.live import Live

    live = Live(
        console=console(),
        get_renderable=lambda: _picture(watch),
        refresh_per_second=2,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with live:
        yield


def _picture(watch: Watch) -> RenderableType:
    from rich.console import Group

    now, rows = utc_now(), watch.rows()
    cells = [
        (*_cells(row), ago(datetime.fromisoformat(row["since"]), now)) for row in rows
    ]
    parts = [table((*_COLUMNS, "since"), cells)]
    parts += [words(note, keep="\n") for note in _notes(rows)]
    if watch.away_since is not None:
        since = moment(watch.away_since, now)
        parts.append(words(Styled(f"{_AWAY}: since {since}", WARN)))
    return Group(*parts)
