"""The image store's blocking file work."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

_BLOCK = 4096
_CHUNK = 1024 * 1024


def remove_tree(path: Path) -> None:
    """Remove a directory, absent is fine."""
    shutil.rmtree(path, ignore_errors=not path.exists())


@dataclass(frozen=True)
class Tree:
    """What is in an unpacked image."""

    content: int
    """Bytes that it takes in blocks of a file system."""
    files: int


def tidy(tree: Path) -> Tree:
    """Count what is there, links not followed. Device nodes and sockets are removed: the guest has
    its own, and one in the root file system would be a way around what its user may open.
    """
    content = files = 0
    for directory, folders, names in os.walk(os.fsencode(tree)):
        for name in (*names, *folders):
            path = os.path.join(directory, name)  # noqa: PTH118 - a hot loop over every file
            found = os.lstat(path)
            kind = stat.S_IFMT(found.st_mode)
            if kind in {stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK}:
                os.unlink(path)  # noqa: PTH108 - names are bytes here: they need not be UTF-8
                continue
            files += 1
            content += max(_BLOCK, -(-found.st_size // _BLOCK) * _BLOCK)
    return Tree(content, files)


def digest(path: Path) -> str:
    """sha256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """sha256 over a sparse file: each MiB that is not all zeros, with its offset before it. Holes
    cost nothing, and count as the zeros that they are.
    """
    digest, zeros = hashlib.sha256(), bytes(_CHUNK)
    with path.open("rb", buffering=0) as file:
        size, at = file.seek(0, os.SEEK_END), 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _CHUNK * _CHUNK
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole is left
                    break
                raise
            chunk = os.pread(file.fileno(), _CHUNK, at)
            if chunk != zeros[: len(chunk)]:
                digest.update(at.to_bytes(8, "little") + chunk)
            at += _CHUNK
        digest.update(size.to_bytes(8, "little"))
    return digest.hexdigest()


def stored_bytes(path: Path) -> int:
    """That a file really takes."""
    return path.stat().st_blocks * 512


def publish(part: Path, path: Path, mode: int = 0o444) -> None:
    """Sync and rename into place: from now on the file counts as present."""
    part.chmod(mode)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
