"""Digests of a checkpoint's parts, segment by segment, without what is a hole or zero. Blocking."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from vmdriver.errors import TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.host.plain_file import open_plain

SEGMENT = 64 * 2**20
BLOCK = 64 * 1024
_ZEROS = b"\0" * BLOCK


def _data_blocks(descriptor: int, start: int, end: int) -> list[int]:
    """Offsets of the blocks in [start, end) that may hold something, by the file system's
    account of holes.
    """
    found: list[int] = []
    at = start
    while at < end:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # only a hole is left
        if data >= end:
            break
        hole = min(os.lseek(descriptor, data, os.SEEK_HOLE), end)
        first = max(data - data % BLOCK, at)
        found += range(first, hole, BLOCK)
        at = -(-hole // BLOCK) * BLOCK
    return found


def segment_digest(
    path: Path, index: int, pulse: Pulse | None = None
) -> tuple[str, int]:
    """sha256 of one segment, and how many bytes of it are not zero (in whole blocks). With a pulse
    it beats, and ends with TimedOut when it is given up.
    """
    digest, stored, pulse = hashlib.sha256(), 0, pulse or Pulse()
    descriptor = open_plain(path)
    try:
        start = index * SEGMENT
        for offset in _data_blocks(descriptor, start, start + SEGMENT):
            pulse.beat()
            if pulse.given_up:
                raise TimedOut(f"{path.name} is not read to its end")
            block = os.pread(descriptor, BLOCK, offset)
            if block.strip(b"\0") if len(block) < BLOCK else block != _ZEROS:
                digest.update(offset.to_bytes(8, "big"))
                digest.update(block)
                stored += len(block)
    finally:
        os.close(descriptor)
    return digest.hexdigest(), stored


Segments = dict[int, tuple[str, int]]
"""By index: see `segment_digest`."""


def share_of(path: Path, indices: Iterator[int], pulse: Pulse) -> Segments:
    """Digests of the segments that this thread gets hold of; others take theirs from the same
    iterator meanwhile.
    """
    return {index: segment_digest(path, index, pulse) for index in indices}


def digests_of(data: bytes) -> tuple[str, ...]:
    """What `segment_digest` would say of the segments of a file with that content."""
    found = []
    for start in range(0, len(data), SEGMENT):
        digest = hashlib.sha256()
        for offset in range(start, min(start + SEGMENT, len(data)), BLOCK):
            block = data[offset : offset + BLOCK]
            if block.strip(b"\0"):
                digest.update(offset.to_bytes(8, "big"))
                digest.update(block)
        found.append(digest.hexdigest())
    return tuple(found)
