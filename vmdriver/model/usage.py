"""What a machine uses of its host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Of one QEMU since it began; bytes, and seconds of CPU. `run`: tells it from an earlier one
    of that machine.
    """

    run: str
    cpu_s: float = 0.0
    memory: int = 0
    """Its own part of the host's memory: what it shares with others is divided among them."""
    own: int = 0
    """Memory that nobody else has a part in."""
    shared: int = 0
    """Memory that it has together with others, all of it: `memory` has a share of this."""
    read: int = 0
    written: int = 0
    received: int = 0
    """From the guest's side: what came to the tap of its network namespace."""
    sent: int = 0
    begun_s: float = 0.0
    """When it began: seconds since the host's boot."""
