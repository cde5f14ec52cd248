"""Memory streams of a machine that goes on while it is written: each page once, in any order, and no end but the whole."""

from __future__ import annotations

import os
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
from tests.unit.test_stream_passes import DEVICES, FOOTER, PART, WIDE
from vmdriver.errors import HypervisorError
from vmdriver.hypervisor.memory import ram_stream
from vmdriver.hypervisor.memory.ram_stream import PAGE, Split

COUNT = RAM // PAGE


def page(number: int, fill: int, *, named: bool = True) -> bytes:
    flags = (0x08 if fill else 0x02) | (0 if named else 0x20)
    body = bytes([fill]) * PAGE if fill else b"\0"
    return record(number * PAGE, flags, b"pc.ram", body)


def stream_of(order: list[int], fills: list[int]) -> bytes:
    """Sections of a few pages: no section says that it is the last one."""
    parts = [
        PART + b"".join(page(n, fills[n]) for n in order[at : at + 7]) + END + FOOTER
        for at in range(0, len(order), 7)
    ]
    return BEGUN + END + FOOTER + b"".join(parts) + DEVICES


def cut(data: bytes, directory: Path) -> tuple[Split, bytes]:
    source, memory = directory / "stream", directory / "memory"
    source.write_bytes(data)
    with source.open("rb") as file, memory.open("w+b") as target:
        once = ram_stream.split(file.fileno(), target.fileno(), RAM, once=True)
        return once, memory.read_bytes()


@given(
    st.permutations(range(COUNT)),
    st.lists(st.integers(0, 3), min_size=COUNT, max_size=COUNT),
)
def test_all_pages_are_taken_in_the_order_in_which_the_guest_touches_them(
    order: list[int], fills: list[int]
) -> None:
    with TemporaryDirectory() as directory:
        found, content = cut(stream_of(order, fills), Path(directory))
    assert content == b"".join(bytes([fill]) * PAGE for fill in fills)
    assert found.stored_bytes == sum(fill > 0 for fill in fills) * PAGE
    assert found.state.endswith(DEVICES)


@pytest.mark.parametrize("fill", [0, 1])
def test_a_page_that_is_missing_is_refused(fill: int, tmp_path: Path) -> None:
    data = stream_of([n for n in range(COUNT) if n != 5], [fill] * COUNT)
    with pytest.raises(HypervisorError, match="lacks 1 page"):
        cut(data, tmp_path)


@pytest.mark.parametrize("fill", [0, 1])
@pytest.mark.parametrize("number", [0, 5, COUNT - 1])
def test_a_page_that_comes_twice_is_refused(
    fill: int, number: int, tmp_path: Path
) -> None:
    """It would be of two moments."""
    data = stream_of([*range(COUNT), number], [fill] * COUNT)
    with pytest.raises(HypervisorError, match="has a page twice"):
        cut(data, tmp_path)


def test_a_machine_that_stood_still_has_an_end_of_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(stream_of(list(range(COUNT)), [1] * COUNT))
    with (
        path.open("rb") as source,
        (tmp_path / "memory").open("w+b") as memory,
        pytest.raises(HypervisorError, match="no end of the memory"),
    ):
        ram_stream.split(source.fileno(), memory.fileno(), RAM)


def test_each_page_below_the_last_is_no_endless_pass(tmp_path: Path) -> None:
    begun = HEADER + SECTION + listed(block(b"pc.ram", WIDE)) + END + FOOTER
    numbers = range(WIDE // PAGE - 1, -1, -1)
    pages = PART + b"".join(page(n, n % 3) for n in numbers) + END + FOOTER
    memory = tmp_path / "memory"
    with memory.open("w+b") as file, writing(begun + pages + DEVICES) as source:
        ram_stream.split(source, file.fileno(), WIDE, once=True)
        for n in (0, 1, 2, 1023):
            assert os.pread(file.fileno(), 1, n * PAGE) == bytes([n % 3])
