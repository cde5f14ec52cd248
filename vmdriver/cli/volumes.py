"""volume: list, make, remove, grow, import and export volumes."""

from __future__ import annotations

import argparse
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vmdriver.cli.new_file import check_free, new_file, taken
from vmdriver.cli.progress import Step, shown_progress
from vmdriver.cli.terminal import print_json, print_table
from vmdriver.cli.wording import size
from vmdriver.config import Loaded
from vmdriver.config.views import admin_socket
from vmdriver.errors import HostError, InvalidRequest
from vmdriver.service import admin_client, volumes_client
from vmdriver.storage import files

_PIECE = 2**20
Tell = Callable[[int, int], None]
"""Takes bytes that are done, and all."""


def volume(loaded: Loaded, arguments: argparse.Namespace) -> int:
    """ls, create, rm, grow, import, export."""
    path, as_json = admin_socket(loaded.config), arguments.json
    if arguments.action == "ls":
        _list(volumes_client.all_of(path), as_json=as_json)
        return 0
    workspace, name = arguments.workspace, arguments.name
    match arguments.action:
        case "rm":
            volumes_client.remove(path, workspace, name)
        case "create":
            wanted = workspace, name, arguments.size_mib
            _told(volumes_client.create(path, *wanted), as_json=as_json)
        case "grow":
            wanted = workspace, name, arguments.size_mib
            _told(volumes_client.grow(path, *wanted), as_json=as_json)
        case "import":
            found = _import(path, workspace, name, arguments.file, as_json=as_json)
            _told(found, as_json=as_json)
        case _:
            whence = workspace, name, arguments.snapshot
            _export(path, whence, arguments.file, as_json=as_json)
    return 0


def _list(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["workspace"] or "-",
            each["name"],
            f"{each['size_mib']} MiB",
            size(each["stored_bytes"]),
            each["problem"] or _who(each),
        )
        for each in found
    ]
    print_table(("workspace", "name", "size", "stored", "attached to"), rows)


def _who(volume: dict[str, Any]) -> str:
    how = " (read only)" if volume["read_only"] else ""
    return ", ".join(volume["sandboxes"]) + how if volume["sandboxes"] else "-"


def _told(volume: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(volume), flush=True)


@contextmanager
def _progress(what: str, *, as_json: bool) -> Iterator[Tell]:
    if as_json:
        yield lambda done, total: print(
            json.dumps({"done_bytes": done, "total_bytes": total}), flush=True
        )
        return
    with shown_progress(what) as tell:
        yield lambda done, total: tell(Step("Copying", what, done=done, total=total))


def _import(
    path: Path, workspace: str, name: str, file: Path, *, as_json: bool
) -> dict[str, Any]:
    """Raw, as a guest sees it: an ext4 file system from the first byte on."""
    with file.open("rb") as source:
        info = os.fstat(source.fileno())
        if not stat.S_ISREG(info.st_mode) or not info.st_size:
            raise InvalidRequest("FILE", "must be a plain file with something in it")
        size_mib = -(-info.st_size // 2**20)
        with _progress(f"importing {name}", as_json=as_json) as tell:
            pieces = _read(source.fileno(), info.st_size, tell)
            return volumes_client.receive(path, workspace, name, size_mib, pieces)


def _read(descriptor: int, end: int, tell: Tell) -> Iterator[tuple[int, bytes]]:
    """What is neither a hole nor zero."""
    at = 0
    while at < end:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # a hole up to the end
        stop = min(os.lseek(descriptor, at, os.SEEK_HOLE), end)
        while at < stop:
            data = os.pread(descriptor, min(_PIECE, stop - at), at)
            if not data:
                raise HostError("the file became shorter while it was read")
            if data.strip(b"\0"):
                yield at, data
            at += len(data)
            tell(at, end)
    tell(end, end)


def _export(
    path: Path, whence: tuple[str, str, str], file: Path, *, as_json: bool
) -> None:
    """A new sparse file, there as a whole or not at all. `whence`: workspace, name, snapshot."""
    check_free(file)
    total, end = _size_of(path, *whence), 0
    with (
        files.or_error(f"{file} cannot be written", "name one on a disk with space"),
        new_file(file) as (target, publish),
        _progress(f"exporting {whence[1]}", as_json=as_json) as tell,
    ):
        for offset, data in volumes_client.content(path, *whence):
            files.write_all(target, data, offset)
            end = offset if not data else end
            tell(offset + len(data), total)
        if not end:
            raise HostError("the volume's content ended early; try again")
        os.ftruncate(target, end)
        os.fsync(target)
        try:
            publish()
        except FileExistsError as error:
            raise taken(file) from error


def _size_of(path: Path, workspace: str, name: str, snapshot: str) -> int:
    """Bytes; 1 where the export will say what is wrong."""
    if snapshot:
        sandbox, _, taken_as = snapshot.partition("/")
        entries = admin_client.list_snapshots(path, sandbox)
        found = [v for e in entries if e["name"] == taken_as for v in e["volumes"]]
    else:
        all_of_it = volumes_client.all_of(path)
        found = [each for each in all_of_it if each["workspace"] == workspace]
    sizes = [int(v["size_mib"]) * 2**20 for v in found if v["name"] == name]
    return sizes[0] if sizes else 1
