"""The driver's own log, wherever it goes: the file that standard error of the one that runs leads
to, or the host's journal.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from vmdriver.cli.bundle.contents import MOST_OF_LOG, end_of, tail_of
from vmdriver.cli.bundle.disclosure import WITHHELD, without_console
from vmdriver.errors import CommandError
from vmdriver.host import process
from vmdriver.host.plain_file import open_plain
from vmdriver.host.unix_socket import peer_of

_UNIT = "vmdriver.service"
_MOST_LINES = 20_000
_DEADLINE_S = 20.0


def running_driver(admin_socket: Path) -> int | None:
    """The process that listens there, by the kernel's word. None: nobody does."""
    with socket.socket(socket.AF_UNIX) as ours:
        ours.settimeout(5)
        try:
            ours.connect(str(admin_socket))
            return peer_of(ours).pid or None
        except OSError:
            return None


def environment_of(pid: int | None) -> dict[str, str]:
    """What that process was begun with; nothing where it cannot be read."""
    try:
        found = Path(f"/proc/{pid}/environ").read_bytes() if pid else b""
    except OSError:
        return {}
    entries = found.decode(errors="replace").split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def driver_log(named: Path | None, pid: int | None) -> tuple[str, str]:
    """The log, and where it is from. Nothing of a guest's output is in it."""
    text, where = _found(named, pid)
    return "\n".join(_told(text.splitlines())) + "\n", where


def of_one(text: str, own: Sequence[str], others: Sequence[str]) -> str:
    """Lines of one sandbox, and of none. `own`, `others`: names of it, and of the others."""
    if not others:
        return text
    its, another = _named(own, "-"), _named(others, "")
    lines = text.splitlines()
    return "".join(
        f"{line}\n" for line in lines if its.search(line) or not another.search(line)
    )


def _named(names: Sequence[str], not_before: str) -> re.Pattern[str]:
    """Any of these as a word, before which there is none of those characters."""
    any_of = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    return re.compile(rf"(?<![\w.{not_before}])(?:{any_of})(?![\w-])")


def _found(named: Path | None, pid: int | None) -> tuple[str, str]:
    if named is not None:
        descriptor = open_plain(named)
        try:
            return tail_of(descriptor, MOST_OF_LOG), str(named)
        finally:
            os.close(descriptor)
    text = _of_process(pid) if pid is not None else None
    if text is not None:
        return text, f"standard error of process {pid}"
    command = ["journalctl", f"--unit={_UNIT}", f"--lines={_MOST_LINES}", "--no-pager"]
    try:
        done = asyncio.run(
            process.run([*command, "--output=short-iso"], deadline_s=_DEADLINE_S)
        )
    except CommandError as error:
        return "", f"not found: {error.message}; name it with --log"
    return end_of(done.stdout, MOST_OF_LOG), f"journal of {_UNIT}"


def _of_process(pid: int) -> str | None:
    """Of a driver whose standard error is a file."""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        path = f"/proc/{pid}/fd/2"
        if not stat.S_ISREG(Path(path).stat().st_mode):
            return None
        descriptor = os.open(path, flags)
    except OSError:
        return None
    try:
        return tail_of(descriptor, MOST_OF_LOG)
    except OSError:
        return None
    finally:
        os.close(descriptor)


_JOURNAL = r"^\d{4}-\d\d-\d\dT\S+ \S+ "
_BEGIN = re.compile(
    rf"(?:^|{_JOURNAL}[^\s:]+\[\d+\]: )"
    r'(?:\{"time": "|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z [A-Z]+ [\w.]+: )'
    rf"|{_JOURNAL}systemd\[\d+\]: "
)
"""Of a record of ours (host/log.py), in a file or behind what the journal says; or of its own."""


def _told(lines: Sequence[str]) -> Iterator[str]:
    """What follows a withheld text is its rest, up to the next record: lines of a traceback."""
    withheld = False
    for line in lines:
        if withheld and not _BEGIN.search(line):
            continue
        shown = _shown(line)
        withheld = shown.endswith(WITHHELD)
        yield shown


def _shown(line: str) -> str:
    begin = line.find("{")
    try:
        entry = json.loads(line[begin:]) if begin >= 0 else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict):
        return without_console(line)
    shown = {
        key: without_console(value) if isinstance(value, str) else value
        for key, value in entry.items()
    }
    return line[:begin] + json.dumps(shown)
