"""Reads layers as archives without writing anything, and says what is wrong with them: a program
of its own, so that an image can neither fill the driver's memory nor hold it up.

usage: python scan.py MAX_CONTENT_BYTES MAX_FILES LAYER...
Prints one JSON object: {"content": bytes, "files": n, "devices": [path in the image, …]}, or
{"layer": n, "problem": text}. Nothing but the standard library is there.
"""

from __future__ import annotations

import gzip
import json
import sys
import tarfile
import zlib
from pathlib import Path

_SMALL = 2**30
_MOST_EXPANSION = 200
"""Ordinary layers shrink to a third, logs to a twentieth; beyond this it is a bomb."""
_LONGEST_NAME = 4096
_DEEPEST = 255
_MOST_DEVICES = 10_000


class Unfit(Exception):
    """Why a layer is not used."""


class Totals:
    """Of all layers so far."""

    def __init__(self, max_content: int, max_files: int) -> None:
        self.max_content, self.max_files = max_content, max_files
        self.content = self.files = 0
        self.devices: set[str] = set()
        """Paths of the device nodes among them, and of hard links to those."""

    def add(self, entry: tarfile.TarInfo) -> None:
        """One entry more. Unfit beyond a limit, or for what no root file system has."""
        self.files += 1
        self.content += entry.size
        if self.files > self.max_files:
            raise Unfit(f"with it the image has more than {self.max_files} files")
        if self.content > self.max_content:
            raise Unfit(
                f"with it the image has more than {self.max_content // 2**20} MiB of content"
            )
        if len(entry.name.encode(errors="surrogateescape")) > _LONGEST_NAME:
            raise Unfit(f"it has a name of more than {_LONGEST_NAME} bytes")
        parts = [part for part in entry.name.split("/") if part not in {"", "."}]
        if not parts and not entry.isdir():
            raise Unfit("its root is not a directory")
        if len(parts) > _DEEPEST:
            raise Unfit(f"it has a path of more than {_DEEPEST} folders")
        self._note_device(entry, "/".join(parts))

    def _note_device(self, entry: tarfile.TarInfo, path: str) -> None:
        node = entry.ischr() or entry.isblk()
        if node or (entry.islnk() and entry.linkname.strip("./") in self.devices):
            self.devices.add(path)
            if len(self.devices) > _MOST_DEVICES:
                raise Unfit(f"it has more than {_MOST_DEVICES} device nodes")
        elif path in self.devices and not entry.islnk():
            self.devices.discard(path)


def scan(path: Path, totals: Totals) -> None:
    """One layer. Unfit."""
    before = totals.content
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    try:
        with (
            gzip.open(path) if zipped else path.open("rb") as content,
            tarfile.open(
                fileobj=content, mode="r|", errors="surrogateescape"
            ) as archive,
        ):
            for entry in archive:
                totals.add(entry)
                archive.members = []  # type: ignore[attr-defined] # it would keep every one
    except MemoryError as error:
        raise Unfit("it has a header that no program should have to hold") from error
    except tarfile.TarError as error:
        raise Unfit(f"it is not a tar archive: {error}") from error
    except (OSError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Unfit(f"it cannot be decompressed: {error}") from error
    except (ValueError, OverflowError) as error:
        raise Unfit(f"it has a broken header: {error}") from error
    grown = totals.content - before
    if grown > max(_SMALL, _MOST_EXPANSION * path.stat().st_size):
        raise Unfit(
            f"its {path.stat().st_size} bytes claim to be {grown} bytes of content"
        )


def _say(**words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")


def main(arguments: list[str]) -> None:
    """See above."""
    totals = Totals(int(arguments[0]), int(arguments[1]))
    for number, path in enumerate(arguments[2:], 1):
        try:
            scan(Path(path), totals)
        except Unfit as problem:
            _say(layer=number, problem=str(problem))
            return
    devices = sorted(totals.devices)
    _say(content=totals.content, files=totals.files, devices=devices)


if __name__ == "__main__":
    main(sys.argv[1:])
