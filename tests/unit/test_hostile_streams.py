"""Memory streams of a QEMU that its guest has taken over: they lie, and they never end."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_checkpoints import RAM, stream
from vmdriver.errors import HypervisorError
from vmdriver.hypervisor.memory import ram_stream
from vmdriver.hypervisor.memory.ram_stream import PAGE
from vmdriver.lifecycle.ports.memory import STATE_BYTES

_MUCH = 4 * STATE_BYTES
"""What each writes at most, so that a driver that takes it all fails and does not hang."""
TIB = 2**40
HEADER = stream({}, {})[: 4 + 4 + 1 + 4 + 3]
SECTION = b"\x01" + struct.pack(">I", 2) + b"\x03ram" + struct.pack(">II", 0, 4)
END = struct.pack(">Q", 0x10)
_LATER = b"\x02" + struct.pack(">I", 2)


def block(name: bytes, size: int) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">Q", size)


def listed(*blocks: bytes, total: int | None = None) -> bytes:
    """A list of blocks as it should be, but for what is in it."""
    sizes = [int.from_bytes(b[-8:], "big") for b in blocks]
    found = sum(sizes) if total is None else total
    return struct.pack(">Q", (found | 0x04) & (2**64 - 1)) + b"".join(blocks)


def record(address: int, flags: int, name: bytes = b"", body: bytes = b"\0") -> bytes:
    named = b"" if flags & 0x20 else bytes([len(name)]) + name
    return struct.pack(">Q", address | flags) + named + body


BLOCKS = listed(block(b"pc.ram", RAM), block(b"rom", 8 * PAGE))
BEGUN = HEADER + SECTION + BLOCKS
PAGES = b"x" * PAGE
MAIN = BEGUN + record(0, 0x08, b"pc.ram", PAGES)

ENDLESS: dict[str, tuple[bytes, bytes, str]] = {
    "devices": (stream({}, {}), b"x" * 65536, "more devices than there are"),
    "footers": (HEADER, b"\x7e\0\0\0\0" * 4096, "more devices than there are"),
    "commands": (
        HEADER,
        b"\x08\0\0\xff\xff" + b"x" * 65535,
        "more devices than there are",
    ),
    "sections of nothing": (BEGUN + END, _LATER + END, "more devices than there are"),
    "blocks without a size": (
        HEADER + SECTION + struct.pack(">Q", 2**40 | 0x04),
        (b"\x01r" + b"\0" * 8) * 4096,
        "bytes of memory",
    ),
    "small blocks": (
        HEADER + SECTION + struct.pack(">Q", RAM | 0x04),
        b"".join(block(b"%05d" % n, 16) for n in range(200)),
        "more blocks than there are",
    ),
    "pages of another block": (
        BEGUN,
        record(PAGE, 0x08, b"rom", PAGES) * 16,
        "more devices than there are",
    ),
    "the same page": (MAIN, record(PAGE, 0x28, body=PAGES) * 16, "again and again"),
    "the same page, named": (
        BEGUN,
        record(PAGE, 0x08, b"pc.ram", PAGES) * 16,
        "again and again",
    ),
    "the same zeros": (MAIN, record(PAGE, 0x22) * 512, "again and again"),
    "zeros all over": (
        MAIN,
        b"".join(record(n * PAGE, 0x22) for n in range(64)),
        "again and again",
    ),
}

LIES: dict[str, tuple[bytes, str]] = {
    "no stream": (b"QFI\xfb" + bytes(64), "no QEMU memory stream|not a QEMU"),
    "version 2": (struct.pack(">II", 0x5145564D, 2) + HEADER[8:], "version 3"),
    "a machine of 4 GiB": (HEADER[:9] + b"\xff\xff\xff\xff", "machine type of"),
    "no machine": (HEADER[:8] + b"\x01" + bytes(64), "names no machine"),
    "a configuration": (HEADER + b"\x05" + bytes(64), "unknown configuration"),
    "no end of the memory": (BEGUN + END + b"\xff" * 64, "no end of the memory"),
    "a page at 1 TiB": (BEGUN + record(TIB, 8, b"pc.ram", PAGES), "0x10000000000"),
    "a page behind the end": (BEGUN + record(RAM, 8, b"pc.ram", PAGES), "no memory"),
    "the last address": (
        BEGUN + record(2**64 - PAGE, 8, b"pc.ram", PAGES),
        "no memory",
    ),
    "a run over the end": (
        MAIN + b"".join(record(RAM + n * PAGE, 0x28, body=PAGES) for n in range(-2, 2)),
        "no memory",
    ),
    "zeros at 1 TiB": (MAIN + record(TIB, 0x22) * 4, "no memory"),
    "zeros over the end": (
        MAIN + b"".join(record(RAM + n * PAGE, 0x22) for n in range(-2, 2)),
        "no memory",
    ),
    "a ROM's page at 1 TiB": (
        BEGUN + record(TIB, 8, b"rom", PAGES),
        "outside of its block",
    ),
    "a page of nothing": (BEGUN + record(0, 0x28, body=PAGES), "unknown block"),
    "a page before all blocks": (
        HEADER + SECTION + record(0, 0x28, body=PAGES),
        "unknown block",
    ),
    "a page of an unknown block": (
        BEGUN + record(0, 8, b"other", PAGES),
        "unknown block",
    ),
    "a block without a name": (
        HEADER + SECTION + listed(block(b"", RAM)),
        "has a block",
    ),
    "a huge name": (
        HEADER + SECTION + listed(block(b"n" * 255, RAM)) + record(0, 8, b"m" * 255),
        "unknown block",
    ),
    "two blocks of one name": (
        HEADER + SECTION + listed(block(b"a", RAM), block(b"a", PAGE)),
        "has a block",
    ),
    "a block of 8 EiB": (
        HEADER + SECTION + listed(block(b"a", 2**63), total=RAM),
        "has a block",
    ),
    "blocks of 8 EiB": (
        HEADER + SECTION + listed(block(b"a", 2**63)),
        "bytes of memory",
    ),
    "two lists": (BEGUN + BLOCKS, "more than one list"),
    "no block of the guest's size": (
        HEADER
        + SECTION
        + listed(block(b"a", PAGE))
        + END
        + b"\x03"
        + struct.pack(">I", 2)
        + END
        + b"\x04",
        "no block of the guest's size",
    ),
    "a zero page of ones": (BEGUN + record(0, 2, b"pc.ram", b"\1"), "something else"),
    "zeros of ones": (MAIN + record(PAGE, 0x22, body=b"\1"), "something else"),
    "a page that is zero too": (BEGUN + record(0, 0x0A, b"pc.ram", PAGES), "kind"),
    "compressed pages": (BEGUN + record(0, 0x100, b"pc.ram", PAGES), "kind"),
    "another page size": (BEGUN + record(512, 8, b"pc.ram", PAGES), "kind"),
}


@contextlib.contextmanager
def writing(first: bytes, again: bytes = b"", most: int = _MUCH) -> Iterator[int]:
    """A pipe into which that is written, at most so much of the second."""
    source, target = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(target, "wb") as file:
            file.write(first)
            for _ in range(most // len(again) if again else 0):
                file.write(again)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield source
    finally:
        with contextlib.suppress(OSError):
            os.close(source)
        writer.join()


@pytest.mark.parametrize("what", ENDLESS)
def test_what_the_driver_holds_of_a_stream_is_bounded(
    what: str, tmp_path: Path
) -> None:
    memory, (first, again, reason) = tmp_path / "memory", ENDLESS[what]
    tracemalloc.start()
    try:
        with (
            memory.open("w+b") as file,
            writing(first, again) as source,
            pytest.raises(HypervisorError, match=reason),
        ):
            ram_stream.split(source, file.fileno(), RAM)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * STATE_BYTES
    assert memory.stat().st_size <= RAM
    if "same" not in what and "zeros" not in what:
        assert memory.stat().st_blocks == 0


@pytest.mark.parametrize("what", LIES)
def test_what_no_such_machine_writes_is_refused(what: str, tmp_path: Path) -> None:
    memory, (data, reason) = tmp_path / "memory", LIES[what]
    with (
        memory.open("w+b") as file,
        # As if it went on: what is wrong is seen before the end.
        writing(data + b"\xff" * 2 * PAGE) as source,
        pytest.raises(HypervisorError, match=reason) as raised,
    ):
        ram_stream.split(source, file.fileno(), RAM)
    assert len(raised.value.message) < 200
    assert memory.stat().st_size <= RAM, "nothing is written outside of the memory"


def test_a_stream_is_refused_wherever_it_is_cut_off(tmp_path: Path) -> None:
    """At each byte up to the first pages, and in each place of a record after that."""
    pages = {n: bytes([n]) * PAGE for n in range(1, 4)}
    whole = stream(pages, {1: b"r" * PAGE}, tail=b"")
    beginning = whole.index(b"pc.ram", whole.index(b"pc.rom")) + 64
    places = [*range(beginning), *range(beginning, len(whole) - 1, 509)]
    for length in places:
        path = tmp_path / "stream"
        path.write_bytes(whole[:length])
        with (
            path.open("rb") as source,
            (tmp_path / "memory").open("w+b") as memory,
            pytest.raises(HypervisorError, match="before its end|no end of the memory"),
        ):
            ram_stream.split(source.fileno(), memory.fileno(), RAM)


def test_a_page_that_comes_again_is_what_it_was_last(tmp_path: Path) -> None:
    """QEMU may send a page anew, and one that was not zero may be."""
    once = {n: bytes([n + 1]) * PAGE for n in range(64)}
    body = record(0, 8, b"pc.ram", once[0])
    body += b"".join(record(n * PAGE, 0x28, body=once[n]) for n in range(1, 64))
    body += b"".join(record(n * PAGE, 0x22) for n in range(0, 64, 3))
    body += record(6 * PAGE, 0x02, b"pc.ram") + record(PAGE, 0x08, b"pc.ram", PAGES)
    data = BEGUN + END + b"\x03" + struct.pack(">I", 2) + body + END + b"\x04devices"
    path, memory = tmp_path / "stream", tmp_path / "memory"
    path.write_bytes(data)
    with path.open("rb") as source, memory.open("w+b") as file:
        found = ram_stream.split(source.fileno(), file.fileno(), RAM)
    expected = {**once, **{n: bytes(PAGE) for n in range(0, 64, 3)}, 1: PAGES}
    assert memory.read_bytes() == b"".join(expected[n] for n in range(64))
    assert found.stored_bytes == (64 - 22) * PAGE


def test_room_is_set_aside_for_all_that_is_kept() -> None:
    assert ram_stream.STATE_BYTES == STATE_BYTES
