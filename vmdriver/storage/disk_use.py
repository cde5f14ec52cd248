"""What the state directory holds on disk."""

from __future__ import annotations

import os
from pathlib import Path


def by_folder(root: Path) -> dict[str, int]:
    """Bytes on disk by the state directory's folders; what has several names counts once, what
    goes meanwhile not at all. Blocking: it looks at every file.
    """
    seen: set[tuple[int, int]] = set()
    used = {}
    for folder in _folders(root):
        used[folder.name] = _of_tree(folder, seen)
    return used


def _folders(root: Path) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            found = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return sorted(found)


def _of_tree(top: Path, seen: set[tuple[int, int]]) -> int:
    size = 0
    for folder, _, files in os.walk(top, onerror=None, followlinks=False):
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
    return size
