"""Reads layers as archives without writing anything, and says what is wrong with them: a program
of its own, so that an image can neither fill the driver's memory nor hold it up.

usage: python scan.py MAX_CONTENT_BYTES MAX_FILES PACKED_BYTES:LAYER...
Prints one JSON object: {"content": bytes, "files": n, "devices": [path in the image, …]}, or
{"layer": n, "problem": text}. Nothing but the standard library is there.

It reads archives as the program that unpacks them does (Go's archive/tar), and refuses what may be
read in two ways: what it does not see is not counted. The module tarfile takes a header that it
does not understand for the end, which others do not.
"""

from __future__ import annotations

import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_SMALL = 2**30
_MOST_EXPANSION = 200
"""Ordinary layers shrink to a third, logs to a twentieth; beyond this it is a bomb."""
_LONGEST_NAME = 4096
_DEEPEST = 255
_MOST_DEVICES = 10_000
_BLOCK = 512
_ZEROS = bytes(_BLOCK)
_CHUNK = 2**16
"""Larger ones are slower: they leave the processor's cache."""
_MOST_HEADER = 2**20
"""Of one that says more about the next entry; Go reads no larger one either."""
_MOST_HEADERS = 8
"""Of those before one entry."""
_NO_DATA = frozenset(b"123456")
"""Links, devices, folders and pipes: whatever size they claim, nothing follows."""
_LINK, _DEVICES, _FOLDER = ord("1"), frozenset(b"34"), ord("5")
_OLD_PLAIN, _SPARSE = 0, ord("S")
_EXTENDED, _FOR_ALL = ord("x"), ord("g")
_LONG_NAME, _LONG_TARGET = ord("L"), ord("K")
_HEADERS = {_EXTENDED, _FOR_ALL, _LONG_NAME, _LONG_TARGET}
_OCTAL, _DECIMAL = re.compile(rb"[0-7]*"), re.compile(rb"[0-9]{1,19}")


class Unfit(Exception):
    """Why a layer is not used."""


@dataclass
class Entry:
    """What an archive says of one file."""

    name: str
    kind: int
    size: int
    target: str

    def is_folder(self) -> bool:
        """Old archives have no kind for these, only a name that ends so."""
        old = self.kind == _OLD_PLAIN and self.name.endswith("/")
        return self.kind == _FOLDER or old


class Totals:
    """Of all layers so far."""

    def __init__(self, max_content: int, max_files: int) -> None:
        self.max_content, self.max_files = max_content, max_files
        self.content = self.files = 0
        self.devices: set[str] = set()
        """Paths of the device nodes among them, and of hard links to those."""
        self._folders: set[int] = set()
        """Hashes of their paths. One that is only in the path of another entry is made, too."""

    def add(self, entry: Entry) -> None:
        """One entry more. Unfit beyond a limit, or for what no root file system has."""
        self.files += 1
        name = entry.name
        if len(name) > _LONGEST_NAME:
            raise Unfit(f"it has a name of more than {_LONGEST_NAME} bytes")
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if not parts and not entry.is_folder():
            raise Unfit("its root is not a directory")
        if len(parts) > _DEEPEST:
            raise Unfit(f"it has a path of more than {_DEEPEST} folders")
        self._count_folders(parts, entry.is_folder())
        if self.files > self.max_files:
            raise Unfit(f"with it the image has more than {self.max_files} files")
        self.count(entry.size)
        if self.devices or entry.kind in _DEVICES:
            self._note_device(entry, "/".join(parts))

    def count(self, size: int) -> None:
        """So much content more. Unfit."""
        self.content += size
        if self.content > self.max_content:
            raise Unfit(
                f"with it the image has more than {self.max_content // 2**20} MiB of content"
            )

    def _count_folders(self, parts: list[str], is_folder: bool) -> None:
        if is_folder:
            self._folders.add(hash(tuple(parts)))
        while len(parts) > 1:
            parts = parts[:-1]
            known = hash(tuple(parts))
            if known in self._folders:
                break
            self._folders.add(known)
            self.files += 1

    def _note_device(self, entry: Entry, path: str) -> None:
        node = entry.kind in _DEVICES
        linked = entry.kind == _LINK and entry.target.strip("./") in self.devices
        if node or linked:
            self.devices.add(path)
            if len(self.devices) > _MOST_DEVICES:
                raise Unfit(f"it has more than {_MOST_DEVICES} device nodes")
        elif entry.kind != _LINK:
            self.devices.discard(path)


class Content:
    """A layer's bytes, one after the other, decompressed if need be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._have, self._at = file, b"", 0
        self._packed = file.read(2)
        self._zipped = self._packed == b"\x1f\x8b"
        self._member = zlib.decompressobj(31)

    def take(self, size: int) -> bytes:
        """The next ones: so many, or fewer at the end."""
        end = self._at + size
        while end > len(self._have):
            more = self._more()
            if not more:
                break
            self._have, self._at, end = self._have[self._at :] + more, 0, size
        found = self._have[self._at : end]
        self._at += len(found)
        return found

    def skip(self, size: int) -> int:
        """How many of them were there."""
        left = size
        while left > len(self._have) - self._at:
            left -= len(self._have) - self._at
            self._have, self._at = self._more(), 0
            if not self._have:
                return size - left
        self._at += left
        return size

    def _more(self) -> bytes:
        """The next few; none at the end. Unfit where it cannot be decompressed."""
        while True:
            packed, self._packed = self._packed or self._file.read(_CHUNK), b""
            if not self._zipped:
                return packed
            if self._member.eof and packed:  # another one behind it
                self._member = zlib.decompressobj(31)
            elif not packed and not self._member.eof:
                raise Unfit("it cannot be decompressed: it ends too early")
            elif not packed:
                return b""
            try:
                found = self._member.decompress(packed, _CHUNK)
            except zlib.error as error:
                raise Unfit(f"it cannot be decompressed: {error}") from error
            self._packed = self._member.unconsumed_tail or self._member.unused_data
            if found:
                return found


def _broken(what: str) -> Unfit:
    return Unfit(f"it is not a tar archive: {what}")


def _number(field: bytes) -> int:
    """As Go reads one. Unfit for what others read in another way."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
        if field[0] & 0x40 or value >= 2**63:
            raise _broken("a number is negative, or too large")
        return value
    digits = field.strip(b" \0").split(b"\0")[0]
    if not _OCTAL.fullmatch(digits) or (digits and not field[0]):
        raise _broken("a number is none")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    """With a character for each byte: nothing here asks which one."""
    return field.split(b"\0", 1)[0].decode("latin-1")


def _checked(block: bytes) -> bytes:
    """A header. Unfit where it is cut off, or its sum is not what it says."""
    if len(block) < _BLOCK:
        raise _broken("it ends within a header")
    summed = block[:148] + b" " * 8 + block[156:]
    claimed, total = _number(block[148:156]), sum(summed)
    if claimed != total:  # some took the bytes for signed ones
        total -= 256 * sum(byte > 127 for byte in summed)
    if claimed != total:
        raise _broken("a header is none")
    return block


def _records(data: bytes) -> dict[bytes, bytes]:
    """Of a PAX header: lines of LENGTH NAME=VALUE. Unfit."""
    found = {}
    while data:
        digits, _, _ = data[:20].partition(b" ")
        length = int(digits) if _DECIMAL.fullmatch(digits) else 0
        record = data[len(digits) + 1 : length]
        name, equals, value = record[:-1].partition(b"=")
        if not equals or length > len(data) or record[-1:] != b"\n":
            raise _broken("a record is none")
        found[name] = value
        data = data[length:]
    return found


class Headers:
    """Those before one entry, which say more about it."""

    def __init__(self) -> None:
        self._count = 0
        self._records: dict[bytes, bytes] = {}
        self._long: dict[int, bytes] = {}

    def read(self, kind: int, size: int, content: Content) -> None:
        """One of them. Unfit."""
        self._count += 1
        if size > _MOST_HEADER or self._count > _MOST_HEADERS:
            raise Unfit("it has a header that no program should have to hold")
        data = content.take(size)
        content.skip(-size % _BLOCK)
        if len(data) < size:
            raise _broken("it ends within a header")
        if kind == _EXTENDED:
            self._records = _records(data)
        elif kind != _FOR_ALL:
            self._long[kind] = data

    def number(self, name: bytes, otherwise: int) -> int:
        """A record's. Unfit."""
        text = self._records.get(name, b"")
        if text and not _DECIMAL.fullmatch(text):
            raise _broken("a number is none")
        return int(text) if text else otherwise

    def text(self, kind: int, name: bytes, otherwise: str) -> str:
        """A name that is too long for a header of old."""
        if kind in self._long:
            return _text(self._long[kind])
        return self._records.get(name, b"").decode("latin-1") or otherwise


def entries(content: Content) -> Iterator[Entry]:
    """Of an archive, up to its end. Unfit."""
    headers = Headers()
    while block := content.take(_BLOCK):
        if block == _ZEROS:
            if content.take(_BLOCK).strip(b"\0"):
                raise _broken("it goes on behind its end")
            return
        kind, size = _checked(block)[156], _number(block[124:136])
        if kind in _HEADERS:
            headers.read(kind, size, content)
            continue
        size = 0 if kind in _NO_DATA else headers.number(b"size", size)
        claimed = max(
            size,
            _sparse(block, content) if kind == _SPARSE else 0,
            headers.number(b"GNU.sparse.size", 0),
            headers.number(b"GNU.sparse.realsize", 0),
        )
        name = headers.text(_LONG_NAME, b"path", _short_name(block))
        name = headers.text(-1, b"GNU.sparse.name", name)
        target = headers.text(_LONG_TARGET, b"linkpath", _text(block[157:257]))
        yield Entry(name, kind, claimed, target)
        if content.skip(size) < size:
            raise _broken("it ends within a file")
        content.skip(-size % _BLOCK)
        headers = Headers()


def _short_name(block: bytes) -> str:
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _sparse(block: bytes, content: Content) -> int:
    """What a GNU sparse file claims to be large; blocks with more of its map are read."""
    more, read = block[482], 0
    while more:
        further = content.take(_BLOCK)
        read += _BLOCK
        if len(further) < _BLOCK or read > _MOST_HEADER:
            raise Unfit("it has a header that no program should have to hold")
        more = further[504]
    return _number(block[483:495])


def scan(path: Path, packed: int, totals: Totals) -> None:
    """One layer, for which `packed` bytes were fetched. Unfit."""
    before, packed = totals.content, min(packed, path.stat().st_size)
    with path.open("rb") as file:
        content = Content(file)
        for entry in entries(content):
            totals.add(entry)
        while rest := content.take(_CHUNK):
            totals.count(len(rest))
    grown = totals.content - before
    if grown > max(_SMALL, _MOST_EXPANSION * packed):
        raise Unfit(f"its {packed} bytes claim to be {grown} bytes of content")


def _say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")


def main(arguments: list[str]) -> None:
    """See above."""
    totals = Totals(int(arguments[0]), int(arguments[1]))
    for number, layer in enumerate(arguments[2:], 1):
        packed, _, path = layer.partition(":")
        try:
            scan(Path(path), int(packed), totals)
        except Unfit as problem:
            _say(layer=number, problem=str(problem))
            return
    devices = sorted(os.fsdecode(path.encode("latin-1")) for path in totals.devices)
    _say(content=totals.content, files=totals.files, devices=devices)


if __name__ == "__main__":
    main(sys.argv[1:])
