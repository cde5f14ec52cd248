"""A bundle as a file: a list of what is inside, then that."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdriver import __version__
from vmdriver.cli.new_file import new_file, taken
from vmdriver.storage import files

TOP, LIST = "vmdriver-report", "MANIFEST"
MOST = 64 * 2**20
"""Bytes of all that is inside, before it is packed."""
LEFT_OUT = (
    (
        "values of environments, commands, labels, driver_config and what extensions hold: names "
        "and numbers stand for them"
    ),
    "tokens, keys, certificates, logins of registries, seed disks, extensions' own files",
    "memory, disks, checkpoints",
    "what guests print and say: in messages, and as files of their own unless --console",
)


@dataclass(frozen=True)
class Member:
    """One file inside. `what`: it is, for people."""

    name: str
    data: bytes
    what: str


def listing(members: Sequence[Member], made: float, no_room: Sequence[str] = ()) -> str:
    """What is inside, and what is not. `no_room`: names of what would have made it too large."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))
    width = max((len(member.name) for member in members), default=0)
    lines = [f"vmdriver {__version__}, report of {when}", "", "inside:"]
    lines += [
        f"  {member.name.ljust(width)}  {len(member.data):9}  {member.what}"
        for member in members
    ]
    lines += ["", "not inside:", *(f"  {text}" for text in LEFT_OUT)]
    if no_room:
        text = f"not inside, since a report has {MOST // 2**20} MiB at most:"
        lines += ["", text, *(f"  {name}" for name in no_room)]
    return "\n".join([*lines, ""])


def write(path: Path, members: Sequence[Member], listed: str, made: float) -> None:
    """Make it, 0600, all of it or nothing. Refused where there is something of that name;
    StorageError, as on a full disk.
    """
    what = f"the report {path} cannot be written"
    with (
        files.or_error(what, "name a file on a disk with space"),
        new_file(path) as (descriptor, publish),
    ):
        with (
            os.fdopen(os.dup(descriptor), "wb") as file,
            tarfile.open(fileobj=file, mode="w:gz") as archive,
        ):
            for member in (Member(LIST, listed.encode(), "this list"), *members):
                archive.addfile(_entry(member, made), io.BytesIO(member.data))
        os.fsync(descriptor)
        try:
            publish()
        except FileExistsError as error:
            raise taken(path) from error


def _entry(member: Member, made: float) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(f"{TOP}/{member.name}")
    entry.size, entry.mode, entry.mtime = len(member.data), 0o600, int(made)
    return entry
