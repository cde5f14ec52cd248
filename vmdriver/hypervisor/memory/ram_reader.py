"""The process that reads a QEMU's memory stream: begun by `confined_reader`, with three descriptors
and no right. What it finds, or what is wrong, it says once, at the end.
"""

from __future__ import annotations

import os
import struct
import sys

from vmdriver.errors import HypervisorError
from vmdriver.host.confined.confine import confine
from vmdriver.hypervisor.memory import ram_stream

ANSWER = struct.Struct(">BQI")
"""Before the text or the state: its kind, the stored bytes (or an error's number), its length."""
CUT, REFUSED, FILE_ERROR, NOT_CONFINED = range(4)
_ADDRESS_SPACE = 128 * 2**20
"""The interpreter has some 30 MiB; the stream's rest up to 16 MiB, three times for a moment."""
_CPU_S, _CPU_BYTES = 30, 16 * 2**20
"""Of processor time: so many seconds, and one for each so many bytes of memory. 4 GiB of pages took
2 s (measured).
"""


def _answer(
    source: int, memory: int, memory_bytes: int, *, once: bool
) -> tuple[int, int, bytes]:
    try:
        found = ram_stream.split(source, memory, memory_bytes, once=once)
    except HypervisorError as error:
        return REFUSED, 0, error.message.encode()
    except OSError as error:
        text = (error.strerror or str(error)).encode()
        return FILE_ERROR, error.errno or 0, text
    except MemoryError:
        return REFUSED, 0, b"QEMU's memory stream takes too much memory"
    return CUT, found.stored_bytes, found.state


def main() -> None:
    """Arguments: descriptors of the stream, of the memory's file and for the answer; bytes of the
    memory; user and group to become; 1 for the memory of one moment of a machine that went on.
    """
    source, memory, answer, memory_bytes, uid, gid, once = map(int, sys.argv[1:])
    pages = memory_bytes // ram_stream.PAGE
    try:
        confine(
            uid,
            gid,
            file_bytes=memory_bytes,
            memory_bytes=_ADDRESS_SPACE + 2 * pages,
            cpu_s=_CPU_S + memory_bytes // _CPU_BYTES,
        )
    except (OSError, ValueError) as error:
        kind, number, content = NOT_CONFINED, 0, str(error).encode()
    else:
        kind, number, content = _answer(source, memory, memory_bytes, once=bool(once))
    data = memoryview(ANSWER.pack(kind, number, len(content)) + content)
    while data:
        data = data[os.write(answer, data) :]
    os._exit(0)  # an interpreter's own end would call what it may not any more
