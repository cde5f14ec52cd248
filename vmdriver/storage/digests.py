"""Digests of a checkpoint's parts, segment by segment, without what is a hole or zero. Blocking.

New ones are BLAKE3: of one thread it takes less than half of what sha256 takes, also where the CPU
has instructions for that. Checkpoints of 0.1.0 have sha256, and are compared by that.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from vmdriver.errors import TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.host.plain_file import open_plain

SEGMENT = 64 * 2**20
BLOCK = 64 * 1024
_ZEROS = b"\0" * BLOCK
_BEGIN = 64
"""Bytes of a block that are looked at first: hardly any block begins with so many zeros."""
_PREFIX = 8
"""Bytes in front of each block in what is digested: its offset."""
_SLOT = _PREFIX + BLOCK
_BATCH = 16
"""Blocks that are read and digested by one call each: a thread that asks for the interpreter
between blocks of 64 KiB waits longer for that than it computes.
"""


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


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


BLAKE3, SHA256 = "blake3:", ""
"""How a digest begins, by its kind."""


def kind_of(digests: tuple[str, ...]) -> str:
    """Of a part's digests. All of them are of one kind."""
    return BLAKE3 if not digests or digests[0].startswith(BLAKE3) else SHA256


def _hash(kind: str) -> _Hash:
    return blake3() if kind == BLAKE3 else hashlib.sha256()


class _Batches:
    """Reads blocks of a file where each is preceded by its offset, as it is digested."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._room = memoryview(bytearray(_BATCH * _SLOT))
        starts = range(_PREFIX, _BATCH * _SLOT, _SLOT)
        self._blocks = [self._room[start : start + BLOCK] for start in starts]

    def read(self, offset: int, count: int) -> int:
        """Bytes of the file from there, of at most so many blocks; fewer where it ends."""
        wanted, got = count * BLOCK, 0
        for index in range(count):
            at = (offset + index * BLOCK).to_bytes(_PREFIX, "big")
            self._room[index * _SLOT : index * _SLOT + _PREFIX] = at
        while got < wanted:
            index, inside = divmod(got, BLOCK)
            left = [self._blocks[index][inside:], *self._blocks[index + 1 : count]]
            more = os.preadv(self._descriptor, left, offset + got)
            if not more:
                break
            got += more
        return got

    def runs(self, size: int) -> Iterator[tuple[memoryview, int]]:
        """Of what was read last, so many bytes: what is digested, as long as no block of zeros
        comes between, and how much of it is the file's.
        """
        begin = stored = 0
        for at, inside in zip(range(0, size, BLOCK), self._blocks, strict=False):
            slot, length = at // BLOCK * _SLOT, min(BLOCK, size - at)
            if _holds(inside[:length]):
                stored += length
                continue
            if stored:
                yield self._room[begin:slot], stored
            begin, stored = slot + _SLOT, 0
        if stored:
            yield (
                self._room[begin : begin + stored // BLOCK * _SLOT + _rest(stored)],
                stored,
            )


def _rest(stored: int) -> int:
    """How much of what is digested is a last block that is no whole one."""
    return _PREFIX + stored % BLOCK if stored % BLOCK else 0


def _holds(block: memoryview) -> bool:
    """Whether it has anything but zeros."""
    if bytes(block[:_BEGIN]).strip(b"\0"):
        return True
    return block.tobytes() != _ZEROS[: len(block)]


def _batches(offsets: list[int]) -> Iterator[tuple[int, int]]:
    """Blocks one after another, at most so many as are read at once: the first's offset, and
    how many.
    """
    first = count = 0
    for offset in offsets:
        if count and (offset != first + count * BLOCK or count == _BATCH):
            yield first, count
            count = 0
        first, count = (first, count + 1) if count else (offset, 1)
    if count:
        yield first, count


def segment_digest(
    path: Path, index: int, pulse: Pulse | None = None, kind: str = BLAKE3
) -> tuple[str, int]:
    """Digest of one segment, and how many bytes of it are not zero (in whole blocks). With a pulse
    it beats, and ends with TimedOut when it is given up.
    """
    digest, stored, pulse = _hash(kind), 0, pulse or Pulse()
    descriptor = open_plain(path)
    try:
        batches, start = _Batches(descriptor), index * SEGMENT
        for first, count in _batches(_data_blocks(descriptor, start, start + SEGMENT)):
            pulse.beat()
            if pulse.given_up:
                raise TimedOut(f"{path.name} is not read to its end")
            for run, length in batches.runs(batches.read(first, count)):
                digest.update(run)
                stored += length
    finally:
        os.close(descriptor)
    return kind + digest.hexdigest(), stored


Segments = dict[int, tuple[str, int]]
"""By index: see `segment_digest`."""


def share_of(path: Path, indices: Iterator[int], kind: str, pulse: Pulse) -> Segments:
    """Digests of the segments that this thread gets hold of; others take theirs from the same
    iterator meanwhile.
    """
    return {index: segment_digest(path, index, pulse, kind) for index in indices}


def digests_of(data: bytes, kind: str = BLAKE3) -> tuple[str, ...]:
    """What `segment_digest` would say of the segments of a file with that content."""
    found = []
    for start in range(0, len(data), SEGMENT):
        digest = _hash(kind)
        for offset in range(start, min(start + SEGMENT, len(data)), BLOCK):
            block = data[offset : offset + BLOCK]
            if block.strip(b"\0"):
                digest.update(offset.to_bytes(8, "big"))
                digest.update(block)
        found.append(kind + digest.hexdigest())
    return tuple(found)
