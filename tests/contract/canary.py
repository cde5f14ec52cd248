"""Files that nobody may touch, and a witness: the kernel tells of every opening (inotify(7))."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_OPEN, _ACCESS, _MODIFY, _ATTRIB = 0x20, 0x1, 0x2, 0x4
_EVENT = struct.Struct("iIII")
SECRET = b"the host's own secret " * 4096


@contextmanager
def watched(*paths: Path) -> Iterator[None]:
    """Inside, nothing opens, reads, writes or gives away one of these files; at the end they are
    what they were.
    """
    was = {path: (path.stat(), path.read_bytes()) for path in paths}
    watcher = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    for path in paths:
        mask = _OPEN | _ACCESS | _MODIFY | _ATTRIB
        added = _LIBC.inotify_add_watch(watcher, os.fsencode(path), mask)
        assert added > 0, os.strerror(ctypes.get_errno())
    try:
        yield
        try:
            events = os.read(watcher, 4096)
        except BlockingIOError:
            events = b""
    finally:
        os.close(watcher)
    seen = [_EVENT.unpack_from(events, at)[1] for at in range(0, len(events), 16)]
    assert not seen, f"a canary was touched: {[hex(mask) for mask in seen]}"
    for path, (info, content) in was.items():
        now = path.stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (
            info.st_mode,
            info.st_uid,
            info.st_gid,
        )
        assert path.read_bytes() == content
