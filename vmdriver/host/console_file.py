"""A machine's console: a file to whose end QEMU appends what the guest prints.

A driver that runs cuts it when it has grown. While none runs the kernel keeps it small: QEMU may
write no file beyond a size (the wall's part `limits`), and before it starts, the console's end is
set a little below that, behind a hole that takes no space. What would go beyond is refused by the
kernel and dropped by QEMU.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from vmdriver.host.plain_file import open_plain
from vmdriver.host.visible import visible_lines

LIMIT = 1024 * 1024
"""A driver that runs cuts what is longer."""
KEPT = 256 * 1024
"""To its last bytes."""
ROOM = 8 * LIMIT
"""Most that is written between two cuts, and while no driver runs."""
_CUT = b"[earlier output was cut]\n"


def begin_below(path: Path, ceiling: int) -> None:
    """Let the console end ROOM below the offset `ceiling`, with what it has to show. While no QEMU
    has it open. OSError.
    """
    with _opened(path) as file:
        kept = _last(file, KEPT)
        os.ftruncate(file, 0)
        os.ftruncate(file, max(0, ceiling - ROOM) // LIMIT * LIMIT)
        _append(file, kept)


def cut(path: Path) -> None:
    """If it has grown too long, keep its end. QEMU has it open for appending, so that it goes on at
    the new one. Nothing to do where there is none, or what is there is none. OSError.
    """
    try:
        file = open_plain(path, os.O_RDWR | os.O_APPEND)
    except OSError:
        return
    try:
        start = _start(file)
        if os.fstat(file).st_size - start > LIMIT:
            kept = _last(file, KEPT)
            os.ftruncate(file, start)
            _append(file, _CUT + kept)
    finally:
        os.close(file)


def tail(path: Path, size: int = 2000) -> str:
    """The last `size` bytes, as text that can be shown. "" if there is no such file."""
    try:
        with _opened(path, os.O_RDONLY) as file:
            return visible_lines(_text(_last(file, size))).strip()
    except OSError:
        return ""  # only for people; whatever it is, the machine is looked after


class Reader:
    """Follows a console, from the beginning of what there is."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def more(self) -> bytes:
        """What has come since, at most ROOM bytes; all of it if the console was cut. OSError."""
        with _opened(self._path, os.O_RDONLY) as file:
            end = os.fstat(file).st_size
            begin = _start(file) if self._position > end else self._position
            begin = max(begin, _start(file), end - ROOM)
            data = os.pread(file, end - begin, begin)
            self._position = begin + len(data)
            return data


def _start(file: int) -> int:
    """Where what it has to show begins: behind the hole."""
    try:
        return os.lseek(file, 0, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return os.fstat(file).st_size  # nothing yet


def _last(file: int, size: int) -> bytes:
    end = os.fstat(file).st_size
    begin = max(_start(file), end - size)
    return os.pread(file, end - begin, begin)


def _append(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace")


@contextlib.contextmanager
def _opened(path: Path, flags: int = os.O_RDWR | os.O_APPEND) -> Iterator[int]:
    file = open_plain(path, flags)
    try:
        yield file
    finally:
        os.close(file)
