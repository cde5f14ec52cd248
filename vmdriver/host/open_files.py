"""Which files some process of this host has open, from /proc (proc(5)): the kernel's word, which
needs nobody's help.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_Identity = tuple[int, int]


def open_elsewhere(paths: tuple[str, ...]) -> set[str]:
    """Those of these files that another process has open. Blocking, some milliseconds. A
    process that may not be looked at is not seen.
    """
    wanted: dict[_Identity, str] = {}
    for path in paths:
        try:
            info = Path(path).stat()
        except FileNotFoundError:
            continue
        wanted[info.st_dev, info.st_ino] = path
    names = {Path(path).resolve().name for path in wanted.values()}
    found: set[str] = set()
    own = str(os.getpid())
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and process.name != own:
            found.update(wanted[i] for i in _open_of(process, names) if i in wanted)
            if len(found) == len(wanted):
                break
    return found


def _open_of(process: Path, names: set[str]) -> Iterator[_Identity]:
    """Of the files of these names: a look at any other may hang, on a dead file server."""
    try:
        with os.scandir(process / "fd") as descriptors:
            for descriptor in descriptors:
                try:
                    if Path(descriptor.path).readlink().name not in names:
                        continue
                    # Follows to the file itself, also out of another mount namespace.
                    info = descriptor.stat()
                except OSError:
                    continue
                yield info.st_dev, info.st_ino
    except OSError:  # it has ended, or is not ours to look at
        return
