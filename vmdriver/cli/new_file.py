"""A file that a command makes: there as a whole or not at all, and never over another one."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from vmdriver.errors import Refused

Publish = Callable[[], None]
"""Gives the file its name. FileExistsError."""
_NO_UNNAMED = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}
"""Of file systems that know no O_TMPFILE (open(2))."""


def check_free(path: Path) -> None:
    """Refused where there is something of that name."""
    if os.path.lexists(path):
        raise taken(path)


def taken(path: Path) -> Refused:
    """What whoever publishes one too late raises."""
    return Refused(f"{path} is there already", resolution="name another file")


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[tuple[int, Publish]]:
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
