"""QEMU's migration stream, cut in two: the guest's memory as a sparse file, and the rest.

QEMU writes a stopped machine as one stream: headers, every page of every RAM block with a
record header of its own, then the devices. Here the pages of the main block go to their own
offsets of a file, which another QEMU can map copy-on-write; what is left (some 300 KiB) is
again a stream that any QEMU with default capabilities accepts. Zero pages become holes.

Format (QEMU 3 to 10, "ram" section of the precopy stream; QEMU source migration/ram.c,
migration/savevm.c; measured with 7.2 and 10.0): all numbers are big-endian.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from vmdriver.errors import HypervisorError
from vmdriver.lifecycle.ports.memory import STATE_BYTES

PAGE = 4096
MAIN_BLOCK = "vmdriver.ram"
"""What the main RAM block is called in every stream that we write, whatever it was before."""
_MAGIC, _VERSION = 0x5145564D, 3
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_SECTION_START, _SECTION_PART, _SECTION_END, _SECTION_FULL = 1, 2, 3, 4
_SUBSECTION, _CONFIGURATION, _COMMAND, _FOOTER = 5, 7, 8, 0x7E
_PAGE_RECORD = struct.Struct(f">Q{PAGE}x")
_ZERO_RECORD = struct.Struct(">QB")
_MOST_VIEWS = 512  # below IOV_MAX, 1024


@dataclass(frozen=True)
class Split:
    """What a stream held. `state` is the stream without the main block's pages."""

    state: bytes
    memory_bytes: int
    """Size of the main RAM block: the guest's memory."""
    stored_bytes: int
    """Of these, what was not zero and is in the file."""


class _Source:
    """Bytes of a pipe with look-ahead; never reads more than there is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.buffer = bytearray(4 * 2**20)
        self.view = memoryview(self.buffer)
        self.at = 0
        self.end = 0

    def fill(self, least: int, *, or_end: bool = False) -> None:
        """Have `least` bytes from `at` on, or as many as there are still to come. Moves
        bytes: views of them must be gone.
        """
        if len(self.buffer) - self.at < max(least, 64 * 1024):
            left = self.end - self.at
            self.view[:left] = bytes(self.view[self.at : self.end])
            self.at, self.end = 0, left
        while self.end - self.at < least:
            got = os.readv(self._descriptor, [self.view[self.end :]])
            if got == 0 and or_end:
                return
            if got == 0:
                raise HypervisorError("QEMU's memory stream ended before its end")
            self.end += got

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if self.end - self.at < size:
            self.fill(size)
        found = bytes(self.view[self.at : self.at + size])
        self.at += size
        return found

    def number(self, size: int) -> int:
        """The next big-endian number."""
        return int.from_bytes(self.take(size), "big")

    def name(self) -> bytes:
        """The next text behind a length byte."""
        return self.take(self.number(1))

    def rest(self) -> Iterator[bytes]:
        """Everything up to the end of the pipe."""
        yield bytes(self.view[self.at : self.end])
        self.at = self.end = 0
        while chunk := os.read(self._descriptor, 2**20):
            yield chunk


@dataclass
class _Splitter:
    source: _Source
    memory: int
    memory_bytes: int
    """The guest's memory: the block of that size is the main one."""
    out: bytearray = field(default_factory=bytearray)
    main: bytes = b""
    block: bytes = b""
    kept_block: bytes = b""
    """The block that the last record in `out` named: records after it may leave it out."""
    stored: int = 0
    ended: bool = False
    """Whether the last section of RAM was there."""

    def run(self) -> Split:
        self._headers()
        while self._section():
            self._check_size()
        if not self.ended:
            # Pages would be left in what is loaded as devices.
            raise HypervisorError("QEMU's memory stream has no end of the memory")
        for chunk in self.source.rest():
            self.out += chunk
            self._check_size()
        if not self.main:
            raise HypervisorError(
                "QEMU's memory stream has no block of the guest's size"
            )
        os.ftruncate(self.memory, self.memory_bytes)
        return Split(bytes(self.out), self.memory_bytes, self.stored)

    def _check_size(self) -> None:
        """It is held in the driver's memory, and a QEMU that its guest has taken over may write
        for ever.
        """
        if len(self.out) > STATE_BYTES:
            raise HypervisorError(
                "QEMU's memory stream has more devices than there are"
            )

    def _copy(self, size: int) -> bytes:
        taken = self.source.take(size)
        self.out += taken
        return taken

    def _headers(self) -> None:
        magic, version = struct.unpack(">II", self._copy(8))
        if (magic, version) != (_MAGIC, _VERSION):
            raise HypervisorError("this is not a QEMU memory stream of version 3")
        kind = self._copy(1)[0]
        if kind != _CONFIGURATION:
            raise HypervisorError("QEMU's memory stream names no machine type")
        self._copy(int.from_bytes(self._copy(4), "big"))

    def _section(self) -> bool:
        """One section of RAM. False: something else begins, and is left in the source."""
        source = self.source
        source.fill(1)
        kind = source.view[source.at]
        if kind == _FOOTER:
            self._copy(5)
            return True
        if kind == _COMMAND:
            # From QEMU 10 on, "the machine stands still now" comes before the last pages.
            self._copy(int.from_bytes(self._copy(5)[3:], "big"))
            return True
        if kind in {_SECTION_START, _SECTION_FULL}:
            source.fill(6 + 255, or_end=True)
            length = source.view[source.at + 5]
            name = bytes(source.view[source.at + 6 : source.at + 6 + length])
            if name != b"ram":
                return False
            self._copy(6 + length + 8)
        elif kind in {_SECTION_PART, _SECTION_END}:
            self._copy(5)
            self.ended |= kind == _SECTION_END
        elif kind == _SUBSECTION:
            raise HypervisorError("QEMU's memory stream has an unknown configuration")
        else:
            return False
        self._records()
        return True

    def _records(self) -> None:
        source = self.source
        while True:
            source.fill(9)
            if self.block == self.main and self._fast():
                continue
            head = source.number(8)
            flags, address = head & (PAGE - 1), head & ~(PAGE - 1)
            if flags & _MEM_SIZE:
                self.out += struct.pack(">Q", head)
                self._blocks(address)
            elif flags & _EOS:
                self.out += struct.pack(">Q", head)
                return
            else:
                self._record(flags, address)

    def _blocks(self, total: int) -> None:
        while total > 0:
            name = self.source.name()
            size = self.source.number(8)
            if size == self.memory_bytes and not self.main:
                self.main, name_out = name, MAIN_BLOCK.encode()
            else:
                name_out = name
            self.out += bytes([len(name_out)]) + name_out + struct.pack(">Q", size)
            self._check_size()
            total -= size

    def _record(self, flags: int, address: int) -> None:
        if not flags & _CONTINUE:
            self.block = self.source.name()
        if flags & _ZERO:
            body = self.source.take(1)
        elif flags & _PAGE:
            body = self.source.take(PAGE)
        else:
            raise HypervisorError(
                f"QEMU's memory stream has records of kind {flags:#x}"
            )
        if self.block != self.main:
            name = b""
            if self.block != self.kept_block:
                flags &= ~_CONTINUE
                name = bytes([len(self.block)]) + self.block
                self.kept_block = self.block
            else:
                flags |= _CONTINUE
            self.out += struct.pack(">Q", address | flags) + name + body
            self._check_size()
        elif flags & _PAGE:
            os.pwrite(self.memory, body, address)
            self.stored += PAGE

    def _fast(self) -> bool:
        """As many records of one kind as are in the buffer, where they go on in the main
        block. True: there were some.
        """
        source = self.source
        kind = source.view[source.at + 7] | (source.view[source.at + 6] & 0x0F) << 8
        if kind == _ZERO | _CONTINUE:
            return self._skip_zeros()
        if kind == _PAGE | _CONTINUE:
            if source.end - source.at < _PAGE_RECORD.size:
                source.fill(_PAGE_RECORD.size)
            return self._write_pages()
        return False

    def _skip_zeros(self) -> bool:
        source, size = self.source, _ZERO_RECORD.size
        whole = (source.end - source.at) // size * size
        count = 0
        for head, _ in _ZERO_RECORD.iter_unpack(
            source.view[source.at : source.at + whole]
        ):
            if head & (PAGE - 1) != _ZERO | _CONTINUE:
                break
            count += 1
        source.at += count * size
        return count > 0

    def _write_pages(self) -> bool:
        source, size, flags = self.source, _PAGE_RECORD.size, _PAGE | _CONTINUE
        whole = (source.end - source.at) // size * size
        views: list[memoryview] = []
        start = expected = -1
        at, view = source.at, source.view
        for (head,) in _PAGE_RECORD.iter_unpack(view[at : at + whole]):
            address = head - flags
            if address & (PAGE - 1):
                break
            if address != expected or len(views) == _MOST_VIEWS:
                self._write(views, start)
                views, start = [], address
            views.append(view[at + 8 : at + size])
            expected = address + PAGE
            at += size
        self._write(views, start)
        done, source.at = at > source.at, at
        return done

    def _write(self, views: list[memoryview], offset: int) -> None:
        wanted = len(views) * PAGE
        if views and os.pwritev(self.memory, views, offset) != wanted:
            raise OSError(
                "a page was written in part"
            )  # ENOSPC comes with the next one
        self.stored += wanted


def split(source: int, memory: int, memory_bytes: int) -> Split:
    """Read a stream from the descriptor `source` to its end; write the pages of the block
    that has `memory_bytes` bytes to the empty file `memory`.

    HypervisorError for what is no such stream; OSError of the file.
    """
    return _Splitter(_Source(source), memory, memory_bytes).run()
