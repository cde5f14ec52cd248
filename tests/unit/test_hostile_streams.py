"""Memory streams of a QEMU that its guest has taken over: they never end."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_checkpoints import RAM, stream
from vmdriver.errors import HypervisorError
from vmdriver.hypervisor import ram_stream
from vmdriver.lifecycle.ports.memory import STATE_BYTES

_MUCH = 4 * STATE_BYTES
"""What each writes at most, so that a driver that takes it all fails and does not hang."""
HEADER = stream({}, {})[: 4 + 4 + 1 + 4 + 3]
SECTION = b"\x01" + struct.pack(">I", 2) + b"\x03ram" + struct.pack(">II", 0, 4)
ENDLESS = {
    "devices": (stream({}, {}), b"x" * 65536),
    "footers": (HEADER, b"\x7e\0\0\0\0" * 4096),
    "commands": (HEADER, (b"\x08\0\0\xff\xff" + b"x" * 65535)),
    "blocks without a size": (
        HEADER + SECTION + struct.pack(">Q", 2**40 | 0x04),
        (b"\x01r" + b"\0" * 8) * 4096,
    ),
    "pages of another block": (
        HEADER + SECTION,
        (struct.pack(">Q", 0x08) + b"\x03rom" + b"x" * 4096) * 16,
    ),
}


@contextlib.contextmanager
def writing(first: bytes, again: bytes) -> Iterator[int]:
    source, target = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), os.fdopen(target, "wb") as file:
            file.write(first)
            for _ in range(_MUCH // len(again)):
                file.write(again)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield source
    finally:
        os.close(source)
        writer.join()


@pytest.mark.parametrize("what", ENDLESS)
def test_what_the_driver_holds_of_a_stream_is_bounded(
    what: str, tmp_path: Path
) -> None:
    memory = tmp_path / "memory"
    with (
        memory.open("w+b") as file,
        writing(*ENDLESS[what]) as source,
        pytest.raises(HypervisorError, match="more devices than there are"),
    ):
        ram_stream.split(source, file.fileno(), RAM)
    assert memory.stat().st_blocks == 0
