"""A bundle as a file: a list of what is inside, then that."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmdriver import __version__
from vmdriver.errors import Refused
from vmdriver.storage import files

TOP, LIST = "vmdriver-report", "MANIFEST"
LEFT_OUT = (
    (
        "values of environments, commands, labels, driver_config and what extensions hold: names "
        "and numbers stand for them"
    ),
    "tokens, keys, certificates, logins of registries, seed disks, extensions' own files",
    "memory, disks, checkpoints",
    "what guests print and say: in messages, and as files of their own unless --console",
)
Publish = Callable[[], None]
"""Gives the file its name. FileExistsError."""
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
"""Of file systems that know no O_TMPFILE (open(2))."""


@dataclass(frozen=True)
class Member:
    """One file inside. `what`: it is, for people."""

    name: str
    data: bytes
    what: str


def listing(members: Sequence[Member], made: float) -> str:
    """What is inside, and what is not."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))
    width = max((len(member.name) for member in members), default=0)
    lines = [f"vmdriver {__version__}, report of {when}", "", "inside:"]
    lines += [
        f"  {member.name.ljust(width)}  {len(member.data):9}  {member.what}"
        for member in members
    ]
    return "\n".join([*lines, "", "not inside:", *(f"  {t}" for t in LEFT_OUT), ""])


def write(path: Path, members: Sequence[Member], made: float) -> None:
    """Make it, 0600, all of it or nothing. Refused where there is something of that name;
    StorageError, as on a full disk.
    """
    listed = Member(LIST, listing(members, made).encode(), "this list")
    what = f"the report {path} cannot be written"
    with (
        files.or_error(what, "name a file on a disk with space"),
        _new_file(path) as (descriptor, publish),
    ):
        with (
            os.fdopen(os.dup(descriptor), "wb") as file,
            tarfile.open(fileobj=file, mode="w:gz") as archive,
        ):
            for member in (listed, *members):
                archive.addfile(_entry(member, made), io.BytesIO(member.data))
        os.fsync(descriptor)
        try:
            publish()
        except FileExistsError as error:
            raise _taken(path) from error


def check_free(path: Path) -> None:
    """Refused where there is something of that name."""
    if os.path.lexists(path):
        raise _taken(path)


def _taken(path: Path) -> Refused:
    return Refused(f"{path} is there already", resolution="name another file")


def _entry(member: Member, made: float) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(f"{TOP}/{member.name}")
    entry.size, entry.mode, entry.mtime = len(member.data), 0o600, int(made)
    return entry


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[tuple[int, Publish]]:
    """One that has no name before it is published, so that whatever ends us leaves nothing."""
    check_free(path)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            flags = os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC
            descriptor = os.open(path.parent, flags, 0o600)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
            with _named_file(path) as named:
                yield named
            return

        def publish() -> None:
            # linkat(2) with AT_SYMLINK_FOLLOW, which Python uses when it is given a folder.
            source = f"/proc/self/fd/{descriptor}"
            os.link(source, path.name, dst_dir_fd=parent, follow_symlinks=True)

        try:
            yield descriptor, publish
        finally:
            os.close(descriptor)
    finally:
        os.close(parent)


@contextlib.contextmanager
def _named_file(path: Path) -> Iterator[tuple[int, Publish]]:
    descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        yield descriptor, lambda: os.link(part, path)
    finally:
        os.close(descriptor)
        Path(part).unlink(missing_ok=True)
