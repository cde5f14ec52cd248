"""The status disk's record: 4 KiB that root in the guest may have filled with anything.

Whatever is there, the answer is a report whose values are few, bounded, and can be stored and
shown. What does not look exactly as images/guest/init writes it is as good as not said.
"""

from __future__ import annotations

import re

from vmdriver.host.plain_file import read_start
from vmdriver.lifecycle.ports.host import GuestReport

RECORD_BYTES = 4096
_PHASES = {b"waiting", b"started", b"exited", b"failed", b"probed"}
_REASON_CHARACTERS = 500
# [0-9], not \d or isdigit(): those know digits that int() does not.
_FIELD = re.compile(rb"(phase|code|reason)=(.*)")
_CODE = re.compile(rb"[0-9]{1,3}")
_STAMP = re.compile(
    rb"(?:^| )(init|modules|adopted|supervisor)=([0-9]{1,8}(?:\.[0-9]{1,9})?)(?= |$)"
)


def parse_report(data: bytes) -> GuestReport:
    """Read a status record. Never raises; of a field that comes twice the first counts."""
    fields: dict[bytes, bytes] = {}
    stamps: dict[str, float] = {}
    for line in data[:RECORD_BYTES].partition(b"\0")[0].split(b"\n"):
        field = _FIELD.fullmatch(line)
        if field is not None:
            fields.setdefault(field[1], field[2])
            continue
        for name, seconds in _STAMP.findall(line):
            stamps.setdefault(name.decode("ascii"), float(seconds))
    phase, code = fields.get(b"phase", b""), fields.get(b"code", b"")
    return GuestReport(
        phase=phase.decode("ascii") if phase in _PHASES else "",
        exit_code=_exit_code(code),
        reason=_shown(fields.get(b"reason", b"")),
        stamps=stamps,
    )


def _exit_code(text: bytes) -> int | None:
    """As wait(2) gives it: 0 to 255."""
    code = int(text) if _CODE.fullmatch(text) else None
    return code if code is not None and code <= 255 else None


def _shown(text: bytes) -> str:
    words = text.decode("utf-8", errors="replace")
    return "".join(c if c.isprintable() else "?" for c in words)[:_REASON_CHARACTERS]


def read_report(path: str) -> GuestReport:
    """What the guest said last; nothing if there is no such disk or it cannot be read: a
    report is never in the way of what is wanted of the machine.
    """
    try:
        return parse_report(read_start(path, RECORD_BYTES))
    except OSError:
        return GuestReport()
