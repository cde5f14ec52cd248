"""Memory streams of a machine that ran while they were written: pages come again, and some of them
have become zero.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_checkpoints import RAM
from tests.unit.test_hostile_streams import (
    BEGUN,
    END,
    HEADER,
    SECTION,
    block,
    listed,
    record,
    writing,
)
from vmdriver.errors import HypervisorError
from vmdriver.hypervisor.memory import ram_stream
from vmdriver.hypervisor.memory.ram_stream import PAGE, Split

FOOTER = b"\x7e" + struct.pack(">I", 2)
PART, LAST = (bytes([kind]) + struct.pack(">I", 2) for kind in (2, 3))
DEVICES = b"\x04devices"
COUNT = {b"pc.ram": RAM // PAGE, b"rom": 8}

Pass = dict[tuple[bytes, int], int]
"""What each page that comes is filled with: 0 is sent as a zero page."""


def page_of(block_name: bytes) -> st.SearchStrategy[tuple[bytes, int]]:
    pages = st.integers(0, COUNT[block_name] - 1)
    return pages.map(lambda number: (block_name, number))


PASS = st.dictionaries(
    st.one_of(page_of(b"pc.ram"), page_of(b"pc.ram"), page_of(b"rom")),
    st.integers(0, 3),
    max_size=64,
)


def records(sent: Pass) -> bytes:
    """In the order of the blocks and of their addresses, as QEMU sends them."""
    out, before = b"", b""
    for name, number in sorted(sent):
        fill = sent[name, number]
        flags = (0x08 if fill else 0x02) | (0x20 if name == before else 0)
        body = bytes([fill]) * PAGE if fill else b"\0"
        out += record(number * PAGE, flags, name, body)
        before = name
    return out


def stream_of(passes: list[Pass]) -> bytes:
    parts = [PART + records(sent) + END + FOOTER for sent in passes[:-1]]
    last = LAST + records(passes[-1]) + END + FOOTER
    return BEGUN + END + FOOTER + b"".join(parts) + last + DEVICES


def cut(data: bytes, directory: Path, size: int = RAM) -> tuple[Split, Path]:
    source, memory = directory / "stream", directory / "memory"
    source.write_bytes(data)
    with source.open("rb") as file, memory.open("w+b") as target:
        return ram_stream.split(file.fileno(), target.fileno(), size), memory


@given(st.lists(PASS, min_size=1, max_size=6))
def test_each_page_is_what_it_was_in_the_last_pass_that_had_it(
    passes: list[Pass],
) -> None:
    with TemporaryDirectory() as directory:
        found, memory = cut(stream_of(passes), Path(directory))
        content = memory.read_bytes()
    final: Pass = {}
    for sent in passes:
        final.update(sent)
    own = [final.get((b"pc.ram", n), 0) for n in range(COUNT[b"pc.ram"])]
    assert content == b"".join(bytes([fill]) * PAGE for fill in own)
    assert found.stored_bytes == sum(fill > 0 for fill in own) * PAGE


@given(st.lists(PASS, min_size=1, max_size=6))
def test_pages_of_other_blocks_stay_in_the_order_in_which_they_came(
    passes: list[Pass],
) -> None:
    """QEMU loads them one after another: the last one holds there too."""
    with TemporaryDirectory() as directory:
        found, _ = cut(stream_of(passes), Path(directory))
    expected = []
    for sent in passes:
        expected += [(n, sent[b, n]) for b, n in sorted(sent) if b == b"rom"]
    assert loaded(found.state) == expected
    assert found.state.endswith(DEVICES)


def loaded(state: bytes) -> list[tuple[int, int]]:
    """Number and filling of the pages in what is left of a stream."""
    beginning = BEGUN.replace(b"\x06pc.ram", b"\x0cvmdriver.ram")
    assert state.startswith(beginning)
    at, found = len(beginning), []
    while state[at : at + 1] != DEVICES[:1]:
        (head,) = struct.unpack_from(">Q", state, at)
        if head == 0x10:
            at += 8 + len(FOOTER)
            if state[at : at + 5] in {PART, LAST}:
                at += 5
            continue
        flags, at = head & 0xFFF, at + 8
        at += 0 if flags & 0x20 else 1 + len(b"rom")
        size = 1 if flags & 0x02 else PAGE
        found.append((head // PAGE, state[at]))
        at += size
    return found


def test_what_was_never_anything_but_zero_takes_no_room(tmp_path: Path) -> None:
    filled: Pass = {(b"pc.ram", n): 0 for n in range(COUNT[b"pc.ram"])}
    written: Pass = {(b"pc.ram", 7): 1}
    found, memory = cut(stream_of([filled, written, {**written, **filled}]), tmp_path)
    assert memory.read_bytes() == bytes(RAM)
    assert found.stored_bytes == 0
    assert memory.stat().st_blocks * 512 <= 64 * 1024 // 4, "all but one page is a hole"


WIDE = 1024 * PAGE
WIDE_BEGUN = HEADER + SECTION + listed(block(b"pc.ram", WIDE))


@pytest.mark.parametrize("flags", [0x28, 0x22])
@pytest.mark.parametrize("step", [0, -1])
def test_passes_do_not_go_on_for_ever(flags: int, step: int, tmp_path: Path) -> None:
    """Less than four memories, one page a pass, in sections: the same, or each below the last."""
    body = b"x" * PAGE if flags & 0x08 else b"\0"
    first = record(0, flags & ~0x20, b"pc.ram", body)
    numbers = [(step * n) % 1024 if step else 0 for n in range(1, 1100)]
    again = b"".join(
        PART + record(n * PAGE, flags, body=body) + END + FOOTER for n in numbers
    )
    data = WIDE_BEGUN + first + END + FOOTER + again
    with (
        (tmp_path / "memory").open("w+b") as memory,
        writing(data) as source,
        pytest.raises(HypervisorError, match="goes through the memory again and again"),
    ):
        ram_stream.split(source, memory.fileno(), WIDE)


def test_many_passes_of_a_few_pages_are_taken(tmp_path: Path) -> None:
    """What a machine does that changes little, while it is waited for."""
    hot = [{(b"pc.ram", 3): n % 4, (b"pc.ram", 60): 1} for n in range(100)]
    found, memory = cut(stream_of([*hot, {}]), tmp_path)
    assert found.stored_bytes == 2 * PAGE
    assert memory.read_bytes()[3 * PAGE] == 3
    assert os.stat(memory).st_size == RAM
