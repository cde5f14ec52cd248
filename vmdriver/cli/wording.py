"""Times and sizes as people say them."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def span(seconds: float) -> str:
    """How long something took, in its largest unit.

    >>> span(0.0384), span(1), span(119), span(7200), span(200000)
    ('38 ms', '1 second', '1 minute', '2 hours', '2 days')
    """
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms"
    seconds = max(seconds, 1.0)
    name, length = next(unit for unit in _UNITS if seconds >= unit[1])
    count = int(seconds / length)
    return f"{count} {name}{'' if count == 1 else 's'}"


def took(milliseconds: float) -> str:
    """How long something of ours took, to be compared with another time.

    >>> took(402.4), took(83685)
    ('402 ms', '83.7 s')
    """
    if milliseconds < 9999.5:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1e3:.1f} s"


def ago(then: datetime, now: datetime) -> str:
    """How long before `now`, or after.

    >>> at = datetime(2026, 1, 1, tzinfo=UTC)
    >>> ago(at, datetime(2026, 1, 1, 0, 3, 5, tzinfo=UTC)), ago(at, at)
    ('3 minutes ago', 'just now')
    """
    seconds = (now - then).total_seconds()
    if abs(seconds) < 1:
        return "just now"
    return f"{span(seconds)} ago" if seconds > 0 else f"in {span(-seconds)}"


def moment(then: datetime, now: datetime) -> str:
    """The same, with the time itself.

    >>> moment(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))
    '2 days ago (2026-01-01 00:00:00 UTC)'
    """
    return f"{ago(then, now)} ({then.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC)"


def size(count: float) -> str:
    """A number of bytes.

    >>> size(0), size(300_000), size(5 * 2**20), size(3 * 2**29), size(2**40)
    ('0 MiB', '0.3 MiB', '5 MiB', '1.5 GiB', '1024 GiB')
    """
    if count >= 100 * 2**30:
        return f"{count / 2**30:.0f} GiB"
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    whole = count == 0 or count >= 10 * 2**20 or count % 2**20 == 0
    return f"{count / 2**20:.{0 if whole else 1}f} MiB"


def short_size(count: float) -> str:
    """The same in five characters at most, for a column of a table.

    >>> [short_size(n) for n in (0, 999, 2000, 5 * 2**20, 1023 * 2**20, 3 * 2**29, 2**41)]
    ['0', '999', '2K', '5M', '1.0G', '1.5G', '2.0T']
    """
    if count < 1000:
        return f"{count:.0f}"
    for unit, factor in (("K", 2**10), ("M", 2**20), ("G", 2**30)):
        if count < 999.5 * factor:
            value = count / factor
            return f"{value:.{1 if unit == 'G' and value < 99.95 else 0}f}{unit}"
    return f"{min(count / 2**40, 9999):.{1 if count < 99 * 2**40 else 0}f}T"


def short_span(seconds: float) -> str:
    """The same of a time, in four.

    >>> [short_span(n) for n in (0.2, 59, 60, 7199, 90000, 9e7)]
    ['0s', '59s', '1m', '1h', '1d', '2y']
    """
    for unit, length in (("y", 365 * 86400), ("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds / length)}{unit}"
    return f"{max(0, int(seconds))}s"
