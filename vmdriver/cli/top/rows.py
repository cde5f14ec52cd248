"""What the screen shows of pictures of a driver. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from vmdriver.cli.page import phase_style
from vmdriver.cli.terminal import BAD, DIM, Styled, Words
from vmdriver.cli.wording import short_size, short_span, size
from vmdriver.model.picture import Picture, SeenEvent, SeenSandbox

_NOTHING = Styled("-", DIM)


@dataclass(frozen=True)
class Row:
    """One sandbox. Rates are per second, and None where there is no machine, or it has been seen
    once only; `cpu` is in processors.
    """

    seen: SeenSandbox
    cpu: float | None = None
    disk: float | None = None
    network: float | None = None

    @property
    def own(self) -> int:
        """Bytes of memory."""
        return self.seen.usage.own if self.seen.usage else 0


ORDERS: dict[str, Callable[[Row], object]] = {
    "cpu": lambda row: -(row.cpu or 0),
    "memory": lambda row: -row.own,
    "disk": lambda row: -row.seen.stored,
    "i/o": lambda row: -(row.disk or 0),
    "network": lambda row: -(row.network or 0),
    "age": lambda row: row.seen.created,
    "name": lambda row: row.seen.name,
}
"""Keys to sort by; what is equal is in the order of names."""


class History:
    """The last picture, and the one before whose figures are others."""

    def __init__(self) -> None:
        self.now: Picture | None = None
        self.names: dict[str, str] = {}
        """By id; also of sandboxes that have gone, as long as an event of theirs is shown."""
        self._before: Picture | None = None

    def take(self, picture: Picture) -> None:
        """A new one."""
        if self.now is not None and self.now.used_at < picture.used_at:
            self._before = self.now
        if self.now is not None and self.now.used_at > picture.used_at:
            self._before = None  # the host was started again
        self.now = picture
        told = {event.sandbox_id for event in picture.events}
        gone = {id_: name for id_, name in self.names.items() if id_ in told}
        self.names = gone | {seen.id: seen.name for seen in picture.sandboxes}

    def rows(self) -> list[Row]:
        """Of every sandbox."""
        if self.now is None:
            return []
        before, passed_s = {}, 0.0
        if self._before is not None:
            before = {seen.id: seen for seen in self._before.sandboxes}
            passed_s = self.now.used_at - self._before.used_at
        return [_row(s, before.get(s.id), passed_s) for s in self.now.sandboxes]


def _row(seen: SeenSandbox, before: SeenSandbox | None, passed_s: float) -> Row:
    now, then = seen.usage, before.usage if before else None
    if now is None or then is None or now.run != then.run or passed_s <= 0:
        return Row(seen)
    disk = now.read + now.written - then.read - then.written
    network = now.received + now.sent - then.received - then.sent
    return Row(
        seen,
        cpu=max(0.0, now.cpu_s - then.cpu_s) / passed_s,
        disk=max(0, disk) / passed_s,
        network=max(0, network) / passed_s,
    )


def chosen(rows: Sequence[Row], order: str, wanted: str) -> list[Row]:
    """Those that have `wanted` in their name, id, workspace or phase, in that order."""
    word = wanted.casefold()
    found = [row for row in rows if word in _searched(row.seen)]
    found.sort(key=lambda row: (row.seen.name, row.seen.id))
    return sorted(found, key=ORDERS[order])  # type: ignore[arg-type]


def _searched(seen: SeenSandbox) -> str:
    return "\n".join((seen.name, seen.id, seen.workspace, seen.phase)).casefold()


@dataclass(frozen=True)
class Column:
    """`width` in characters."""

    name: str
    width: int
    cell: Callable[[Row, datetime], Words]
    left: bool = False


def _rate(value: float | None) -> Words:
    return _NOTHING if value is None else short_size(value)


def _of_machine(row: Row, field: str) -> Words:
    usage = row.seen.usage
    return _NOTHING if usage is None else short_size(getattr(usage, field))


def _phase(row: Row, _now: datetime) -> Words:
    return Styled(row.seen.phase, phase_style(row.seen.phase))


_FIXED = (
    Column("PHASE", 10, _phase, left=True),
    Column("CPU%", 5, lambda r, _: _NOTHING if r.cpu is None else f"{r.cpu * 100:.0f}"),
    Column("OWN", 5, lambda r, _: _of_machine(r, "own")),
    Column("SHARED", 6, lambda r, _: _of_machine(r, "shared")),
    Column("DISK", 5, lambda r, _: short_size(r.seen.stored)),
    Column("I/O/s", 5, lambda r, _: _rate(r.disk)),
    Column("NET/s", 5, lambda r, _: _rate(r.network)),
    Column("AGE", 4, lambda r, now: short_span((now - r.seen.created).total_seconds())),
)
_WORKSPACE = Column("WORKSPACE", 14, lambda r, _: r.seen.workspace, left=True)
_NEEDED_LEAST = ("SHARED", "I/O/s", "NET/s", "DISK", "AGE", "OWN", "CPU%")
"""What a terminal that is too narrow does without, first ones first."""
_LEAST_NAME, _MOST_NAME = 8, 48
_GAP, _SCROLLBAR = 2, 1
_WIDE = 100


def columns(width: int) -> list[Column]:
    """That fit into so many characters; the name has what is left."""
    others = [_WORKSPACE, *_FIXED] if width >= _WIDE else list(_FIXED)
    for name in _NEEDED_LEAST:
        if _taken(others) + _LEAST_NAME <= width:
            break
        others = [column for column in others if column.name != name]
    room = min(max(width - _taken(others), _LEAST_NAME), _MOST_NAME)
    return [Column("NAME", room, lambda r, _: r.seen.name, left=True), *others]


def _taken(others: Sequence[Column]) -> int:
    """Characters beside the name."""
    return sum(column.width + _GAP for column in others) + _GAP + _SCROLLBAR


@dataclass(frozen=True)
class Heights:
    """Lines of what is above and below the table."""

    head: int
    events: int


def heights(lines: int) -> Heights:
    """On a terminal with so many: the table has most of them, and is never without a row.

    >>> heights(24), heights(10)
    (Heights(head=3, events=4), Heights(head=1, events=0))
    """
    events = 4 + (lines - 24) // 6 if lines >= 24 else 4 - (24 - lines) // 2
    return Heights(3 if lines >= 14 else 1, min(max(events, 0), 10))


def headlines(picture: Picture, rows: Sequence[Row]) -> list[str]:
    """Of the whole driver, three lines."""
    totals, usages = picture.totals, [r.seen.usage for r in rows if r.seen.usage]
    phases = Counter(row.seen.phase for row in rows)
    by_phase = ", ".join(f"{n} {phase}" for phase, n in phases.most_common())
    most = f" of {totals.sandbox_limit}" if totals.sandbox_limit else ""
    cpu = sum(row.cpu or 0 for row in rows) * 100
    memory, own = sum(u.memory for u in usages), sum(u.own for u in usages)
    limit = f" of {size(totals.memory_limit)}" if totals.memory_limit else ""
    templates = picture.templates
    waiting = sum(template.waiting for template in templates)
    stored = sum(template.stored for template in templates)
    counted = f"sandboxes {len(rows)}{most}" + (f": {by_phase}" if by_phase else "")
    used = f"memory {size(memory)}, own {size(own)}"
    kept = f"templates {len(templates)}, {size(stored)}"
    return [
        f"vmdriver {picture.version}  {picture.at:%H:%M:%S}  {counted}",
        f"CPU {cpu:.0f} %  {used}  committed {size(totals.committed)}{limit}",
        f"pool {waiting} waiting  {kept}  disk {size(totals.disk_free)} free",
    ]


def event_line(told: SeenEvent, names: dict[str, str]) -> Words:
    """`names`: of sandboxes, by id."""
    event = told.event
    name = names.get(told.sandbox_id, told.sandbox_id)
    first = event.message.partition("\n")[0]
    line = f"{event.at:%H:%M:%S} {name} {event.reason}: {first}"
    return Styled(line, BAD) if event.type == "Warning" else line
