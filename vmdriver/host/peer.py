"""Who is at the other end of a Unix socket, by the kernel's word. unix(7), SO_PEERCRED."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: process, user, group."""


class Peer(NamedTuple):
    """The process that connected, or that listened, as it was then. `pid`: 0 for one that this
    process cannot see.
    """

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    """Of a socket that is connected. OSError."""
    size = _CREDENTIALS.size
    found = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = _CREDENTIALS.unpack(found)
    return Peer(pid, uid)
