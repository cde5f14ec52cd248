"""The image store's blocking file work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_BLOCK = 4096


def open_store(root: Path, disks: Path) -> None:
    """Make the directories; remove unfinished work."""
    for path in (root, disks):
        path.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.chmod(0o711)
    for path in root.glob(".work-*"):
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory, absent is fine."""
    shutil.rmtree(path, ignore_errors=not path.exists())


def tree_size(tree: Path) -> int:
    """Bytes that a tree takes in blocks of a file system, links not followed."""
    total = 0
    for directory, folders, names in os.walk(tree):
        for name in (*names, *folders):
            size = os.lstat(os.path.join(directory, name)).st_size  # noqa: PTH118 - a hot loop over every file
            total += max(_BLOCK, -(-size // _BLOCK) * _BLOCK)
    return total


def publish(part: Path, path: Path) -> None:
    """Sync and rename into place: from now on the disk counts as present, and nobody
    writes it.
    """
    part.chmod(0o444)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
