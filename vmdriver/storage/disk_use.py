"""What the state directory holds on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_SANDBOXES = "sandboxes"
_APART = frozenset({"suspended", "mapped", "not-restored", "snapshots", "capture.part"})
"""Folders of a sandbox's that hold memory (SandboxFiles in layout.py)."""


def by_folder(root: Path) -> dict[str, int]:
    """Bytes on disk by the state directory's folders, with those of sandboxes' kept memory apart
    (`sandboxes/suspended`); what has several names counts once, what goes meanwhile not at all.
    Blocking: it looks at every file.
    """
    seen: set[tuple[int, int]] = set()
    used: dict[str, int] = {}
    for folder in _folders(root):
        used[folder.name] = 0
        for within, size in _of_tree(folder, seen):
            name = folder.name
            if name == _SANDBOXES and len(within) > 1 and within[1] in _APART:
                name = f"{name}/{within[1]}"
            used[name] = used.get(name, 0) + size
    return used


def of_files(
    root: Path, paths: Mapping[str, Sequence[str]]
) -> tuple[dict[str, int], int]:
    """Bytes on disk of these files, by whose they are, and those that are left where `root` is.
    What is not there is nothing. Blocking.
    """
    used = {whose: sum(map(_of_file, files)) for whose, files in paths.items()}
    try:
        free = shutil.disk_usage(root).free
    except OSError:
        free = 0
    return used, free


def _of_file(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            found = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(found)


def _of_tree(
    top: Path, seen: set[tuple[int, int]]
) -> Iterator[tuple[tuple[str, ...], int]]:
    """Where below `top`, and bytes, by folder."""
    for folder, _, files in os.walk(top, onerror=None, followlinks=False):
        size = 0
        for name in files:
            try:
                info = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - of many
            except OSError:
                continue
            if info.st_nlink > 1:
                if (info.st_dev, info.st_ino) in seen:
                    continue
                seen.add((info.st_dev, info.st_ino))
            size += info.st_blocks * 512
        yield Path(folder).relative_to(top).parts, size
