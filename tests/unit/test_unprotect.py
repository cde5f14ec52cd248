"""A process whose memory is protected by a descriptor of its own that nobody reads: as QEMU before 8.1 stays after a writing
that was ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from vmdriver.hypervisor.memory.unprotect import unprotect, unprotect_process

PROTECTED = """
import ctypes, fcntl, mmap, os, struct
libc = ctypes.CDLL(None, use_errno=True)
found = libc.syscall(323, os.O_CLOEXEC | 1)
if found < 0:
    raise SystemExit(77)
fcntl.ioctl(found, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
pages = mmap.mmap(-1, 16 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
pages[:] = b"x" * len(pages)
start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
fcntl.ioctl(found, 0xC020AA00, bytearray(struct.pack("QQQQ", start, len(pages), 2, 0)))
fcntl.ioctl(found, 0xC018AA06, bytearray(struct.pack("QQQ", start, len(pages), 1)))
print("protected", flush=True)
pages[5 * 4096] = 1
pages[9 * 4096] = 1
print("went on", flush=True)
"""


def test_what_stands_still_for_ever_goes_on() -> None:
    process = subprocess.Popen([sys.executable, "-c", PROTECTED], stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"protected\n":
            assert process.wait(10) == 77
            pytest.skip("this kernel protects no memory of processes")
        waits = Path(f"/proc/{process.pid}/wchan")
        until(
            lambda: waits.read_text() == "handle_userfault", "it is not protected", 10
        )
        pinned = os.pidfd_open(process.pid)
        unprotect_process(pinned, process.pid)
        assert process.stdout.readline() == b"went on\n"
        assert process.wait(10) == 0
        unprotect_process(pinned, process.pid)  # it has ended
        os.close(pinned)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_what_protects_nothing_is_left_alone(tmp_path: Path) -> None:
    unprotect(tmp_path, "nobody's")
    begun = time.monotonic()
    pinned = os.pidfd_open(os.getpid())
    unprotect_process(pinned, os.getpid())
    os.close(pinned)
    assert time.monotonic() - begun < 5
