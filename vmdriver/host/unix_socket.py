"""Unix sockets (unix(7)): how long a path may be; who is at the other end, by the kernel's word."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

MAX_PATH = 107
"""Longest path in bytes, without its NUL (sun_path[108])."""
_CREDENTIALS = struct.Struct("3i")
"""struct ucred of SO_PEERCRED: process, user, group."""


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
