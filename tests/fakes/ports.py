"""Ports for servers that cannot be given one that is open already."""

from __future__ import annotations

import contextlib
import random
import socket

OURS = (10_000, 32_000)
"""Below those that the kernel gives to whoever asks for any: between the look and the server's beginning it would give
them to tests beside this one.
"""
_dice = random.SystemRandom()
"""Hypothesis has the other one say the same each time."""


def free_port() -> int:
    """One of the loopback's that nobody listens on."""
    for _ in range(100):
        port = _dice.randrange(*OURS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("there is no free port")
