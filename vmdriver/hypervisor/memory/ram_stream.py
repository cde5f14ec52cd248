"""QEMU's migration stream, cut in two: the guest's memory as a sparse file, and the rest.

QEMU writes a machine as one stream: headers, every page of every RAM block with a record header
of its own, then the devices. Of one that runs meanwhile, pages that have changed come again, in
further passes, as zero pages where they have become zero: the last one holds. Here the pages of
the main block go to their own offsets of a file, which another QEMU can map copy-on-write; what is
left (some 300 KiB) is again a stream that any QEMU with default capabilities accepts. Pages that
were zero from the beginning become holes. Of one that goes on, as it was before that (QEMU's
background snapshot), each page comes once, in any order, and no section ends the memory.

Format (QEMU 3 to 10, "ram" section of the precopy stream; QEMU source migration/ram.c,
migration/savevm.c; measured with 7.2 and 10.0): all numbers are big-endian.

Whoever has taken the QEMU over writes what it likes. So no length and no address is believed:
blocks are named once, and have sizes; a page is one of a block that was named, and inside it; it
comes once in a pass; passes are so many at most, and all their pages as well; what is held of the
stream is bounded. It runs in a
process of its own (`ram_reader`) and imports next to nothing, so that this one begins at once.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

from vmdriver.errors import HypervisorError

PAGE = 4096
MAIN_BLOCK = "vmdriver.ram"
"""What the main RAM block is called in every stream that we write, whatever it was before."""
STATE_BYTES = 16 * 2**20
"""Most of everything that is not the guest's RAM; lifecycle.ports.memory sets as much aside."""
_MAGIC, _VERSION = 0x5145564D, 3
_ZERO, _MEM_SIZE, _PAGE, _EOS, _CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
_SECTION_START, _SECTION_PART, _SECTION_END, _SECTION_FULL = 1, 2, 3, 4
_SUBSECTION, _CONFIGURATION, _COMMAND, _FOOTER = 5, 7, 8, 0x7E
_PAGE_RECORD = struct.Struct(f">Q{PAGE}x")
_ZERO_RECORD = struct.Struct(">QB")
_MOST_VIEWS = 512  # below IOV_MAX, 1024
_BUFFER = 4 * 2**20
_LONGEST_MACHINE = 256
_MOST_BLOCKS = 128
_MOST_OTHER = 64 * 2**20
"""Of all blocks but the guest's memory: firmware, option ROMs, ACPI tables. Some 3 MiB."""
_MOST_SECTIONS = 2**17
"""With their ends. QEMU begins one every 50 ms at most."""
_MOST_TIMES = 4
"""The pages of all passes, in memories. Of a machine that stands still each page comes once; of one
that runs, whoever has it written ends that sooner (capture.py).
"""
_MOST_PASSES = 1024
"""QEMU goes through the memory upwards, and begins anew at its end: a page that is not above the
one before it begins a pass (find_dirty_block in its migration/ram.c).
"""


def _refuse(problem: str) -> HypervisorError:
    return HypervisorError(f"QEMU's memory stream {problem}")


class Split:
    """What a stream held. `state` is the stream without the main block's pages, `memory_bytes` the
    main block's size, the guest's memory, and `stored_bytes` what of that was not zero and is in
    the file.
    """

    def __init__(self, state: bytes, memory_bytes: int, stored_bytes: int) -> None:
        self.state = state
        self.memory_bytes = memory_bytes
        self.stored_bytes = stored_bytes


class _Source:
    """Bytes of a pipe with look-ahead; never reads more than there is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.buffer = bytearray(_BUFFER)
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
                raise _refuse("ended before its end")
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


class _Memory:
    """The main block's pages, on their way into the file."""

    def __init__(self, descriptor: int, size: int, *, once: bool) -> None:
        self._descriptor, self.size = descriptor, size
        pages = -(-size // PAGE)
        self.came = bytearray(pages) if once else None
        self._stored = bytearray(pages)
        self._left = _MOST_TIMES * pages
        self._above = 0  # the next page of the same pass is at this address or above it
        self._passes = 1

    @property
    def stored_bytes(self) -> int:
        return self._stored.count(1) * PAGE

    def _check(self, start: int, count: int) -> range:
        """The numbers of these pages."""
        self._left -= count
        if start + count * PAGE > self.size:
            raise _refuse(f"has a page at {start:#x}, where there is no memory")
        if self._left < 0:
            raise _refuse("has the same pages again and again")
        pages = range(start // PAGE, start // PAGE + count)
        if self.came is not None:
            if self.came.find(1, pages.start, pages.stop) >= 0:
                raise _refuse(f"has a page twice, at {start:#x} or after it")
            self.came[pages.start : pages.stop] = b"\1" * count
        elif start < self._above:
            self._passes += 1
            if self._passes > _MOST_PASSES:
                raise _refuse("goes through the memory again and again")
        self._above = start + count * PAGE
        return pages

    def check_whole(self) -> None:
        """Of one moment, all has come: nothing else says that it has ended."""
        if self.came is not None and (missing := self.came.count(0)):
            raise _refuse(f"lacks {missing} pages of the memory")

    def write(self, views: list[memoryview] | list[bytes], start: int) -> None:
        """Pages that follow each other. OSError."""
        if not views:
            return
        pages = self._check(start, len(views))
        if os.pwritev(self._descriptor, views, start) != len(views) * PAGE:
            raise OSError("a page was written in part")  # ENOSPC is the next one's
        self._stored[pages.start : pages.stop] = b"\1" * len(views)

    def clear(self, start: int, count: int) -> None:
        """As many zero pages from there on: holes, but where something was written before."""
        if not count:
            return
        pages = self._check(start, count)
        page = self._stored.find(1, pages.start, pages.stop)
        while page >= 0:
            os.pwrite(self._descriptor, bytes(PAGE), page * PAGE)
            self._stored[page] = 0
            page = self._stored.find(1, page, pages.stop)


class _Splitter:
    def __init__(self, source: _Source, memory: _Memory) -> None:
        self.source, self.memory = source, memory
        self.out = bytearray()
        self.main: bytes | None = None
        """Name of the main block: the first one that has the guest's size."""
        self.sizes: dict[bytes, int] = {}
        self.block: bytes | None = None
        self.kept_block: bytes | None = None
        """The block that the last record in `out` named: records after it may leave it out."""
        self.ended = memory.came is not None
        """Whether the last section of RAM was there, or none is to come."""

    def run(self) -> bytes:
        """What is not the main block's pages."""
        self._headers()
        sections = 0
        while self._section():
            self._check_size()
            sections += 1
            if sections > _MOST_SECTIONS:
                raise _refuse("has more sections, or more devices than there are")
        if not self.ended:
            # Pages would be left in what is loaded as devices.
            raise _refuse("has no end of the memory")
        self.memory.check_whole()
        for chunk in self.source.rest():
            self.out += chunk
            self._check_size()
        if self.main is None:
            raise _refuse("has no block of the guest's size")
        return bytes(self.out)

    def _check_size(self) -> None:
        """It is held in memory, and a QEMU that its guest has taken over may write for ever."""
        if len(self.out) > STATE_BYTES:
            raise _refuse("has more devices than there are")

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
            raise _refuse("names no machine type")
        length = int.from_bytes(self._copy(4), "big")
        if length > _LONGEST_MACHINE:
            raise _refuse(f"names a machine type of {length} bytes")
        self._copy(length)

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
            raise _refuse("has an unknown configuration")
        else:
            return False
        self._records()
        return True

    def _records(self) -> None:
        source = self.source
        while True:
            source.fill(9)
            if self.block is not None and self.block == self.main and self._fast():
                continue
            head = source.number(8)
            flags, address = head & (PAGE - 1), head & ~(PAGE - 1)
            if flags == _MEM_SIZE:
                self.out += struct.pack(">Q", head)
                self._blocks(address)
            elif flags == _EOS:
                self.out += struct.pack(">Q", head)
                return
            else:
                self._record(flags, address)

    def _blocks(self, total: int) -> None:
        """`total` bytes in blocks, which are named here and nowhere else."""
        if self.sizes or total > self.memory.size + _MOST_OTHER:
            raise _refuse(f"has {total} bytes of memory, or more than one list of it")
        while total > 0:
            name = self.source.name()
            size = self.source.number(8)
            if not 0 < size <= total or not name or name in self.sizes:
                raise _refuse(f"has a block {name[:32]!r} of {size} bytes")
            self.sizes[name] = size
            total -= size
            if size == self.memory.size and self.main is None:
                self.main, name_out = name, MAIN_BLOCK.encode()
            else:
                name_out = name
            self.out += bytes([len(name_out)]) + name_out + struct.pack(">Q", size)
            if len(self.sizes) > _MOST_BLOCKS:
                raise _refuse("has more blocks than there are")

    def _record(self, flags: int, address: int) -> None:
        if not flags & _CONTINUE:
            self.block = self.source.name()
        if self.block is None or self.block not in self.sizes:
            raise _refuse(f"has a page of an unknown block {self.block!r:.40}")
        kind = flags & ~_CONTINUE
        if kind not in {_ZERO, _PAGE}:
            raise _refuse(f"has records of kind {flags:#x}")
        body = self.source.take(1 if kind == _ZERO else PAGE)
        if kind == _ZERO and body != b"\0":
            raise _refuse("has a zero page of something else")
        if self.block != self.main:
            self._keep(self.block, kind, address, body)
        elif kind == _PAGE:
            self.memory.write([body], address)
        else:
            self.memory.clear(address, 1)

    def _keep(self, block: bytes, kind: int, address: int, body: bytes) -> None:
        """A page of another block stays in the stream."""
        if address >= self.sizes[block]:
            raise _refuse(f"has a page at {address:#x}, outside of its block")
        name = b""
        if block == self.kept_block:
            kind |= _CONTINUE
        else:
            name = bytes([len(block)]) + block
            self.kept_block = block
        self.out += struct.pack(">Q", address | kind) + name + body
        self._check_size()

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
        source, size, flags = self.source, _ZERO_RECORD.size, _ZERO | _CONTINUE
        whole = (source.end - source.at) // size * size
        count = done = 0
        first = expected = -1
        view = source.view[source.at : source.at + whole]
        for head, fill in _ZERO_RECORD.iter_unpack(view):
            if head != expected:
                self.memory.clear(first, count)
                done, count, first = done + count, 0, head - flags
                if first & (PAGE - 1):
                    break
            if fill:
                break
            expected = head + PAGE
            count += 1
        self.memory.clear(first, count)
        done += count
        source.at += done * size
        return done > 0

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
                self.memory.write(views, start)
                views, start = [], address
            views.append(view[at + 8 : at + size])
            expected = address + PAGE
            at += size
        self.memory.write(views, start)
        done, source.at = at > source.at, at
        return done


def split(source: int, memory: int, memory_bytes: int, *, once: bool = False) -> Split:
    """Read a stream from the descriptor `source` to its end; write the pages of the block that has
    `memory_bytes` bytes to the empty file `memory`. `once`: of a machine that went on.
    HypervisorError for what is no such stream; OSError of the file.
    """
    pages = _Memory(memory, memory_bytes, once=once)
    state = _Splitter(_Source(source), pages).run()
    os.ftruncate(memory, memory_bytes)
    return Split(state, memory_bytes, pages.stored_bytes)
