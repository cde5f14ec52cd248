"""A file system whose server takes every question and answers none: FOLDER COMMAND... runs the command beside it, with
its status; 99 where it has not ended in time, 77 where none can be mounted here. Wants a mount namespace of its own."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading

LATE, NO_FUSE = 99, 77
PATIENCE_S = 60.0
_ANSWER = struct.Struct("<IiQ")
"""struct fuse_out_header of linux/fuse.h: length, error, number of the question."""
_BEGINNING = struct.pack(
    "<IIIIHHIIHH8I", 7, 31, 65536, 0, 12, 9, 65536, 1, 0, 0, *[0] * 8
)
"""struct fuse_init_out, version 7.31."""


def mounted(folder: str) -> int:
    """A descriptor that stands for its server. OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0,allow_other"
    if libc.mount(b"hanging", os.fsencode(folder), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "it cannot be mounted")
    return server


def serve(server: int) -> None:
    """Answer the kernel's greeting, and nothing after that."""
    _, _, number = struct.unpack_from("<IIQ", os.read(server, 2**17))
    length = _ANSWER.size + len(_BEGINNING)
    os.write(server, _ANSWER.pack(length, 0, number) + _BEGINNING)
    while True:
        os.read(server, 2**17)


def main(folder: str, command: list[str]) -> int:
    try:
        server = mounted(folder)
    except OSError:
        return NO_FUSE
    threading.Thread(target=serve, args=(server,), daemon=True).start()
    program = subprocess.Popen(command)
    try:
        return program.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        program.kill()
        return LATE


if __name__ == "__main__":
    # Not by sys.exit: what waits for the disk is let go when its server's descriptor is closed.
    status = main(sys.argv[1], sys.argv[2:])
    sys.stdout.flush()
    os._exit(status)
