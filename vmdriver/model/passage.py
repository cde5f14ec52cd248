"""How QEMU names our files.

QEMU runs as a user of its own, and must walk to each file. Where a folder above ours is closed
to it (a state directory below /root), it comes in through a mount, whose path it is told
instead. Records, plans and everything else of ours know the ordinary paths only.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmdriver.model.places import lies_in

PLACE = Path("/run/vmd-qemu")
"""Where QEMU's ways in begin. A folder of its own: that of a socket is closed to others. Short:
below it libvirt makes sockets (hypervisor/embedded.py says how long a root may be).
"""


@dataclass(frozen=True)
class Passage:
    """Pairs of a folder as we name it and as QEMU does; none: QEMU walks where we do."""

    ways: tuple[tuple[str, str], ...] = ()
    known: tuple[tuple[str, str], ...] = ()
    """Such pairs, in use or not: QEMU and libvirt may still have names of an earlier driver."""

    def theirs(self, path: str) -> str:
        """Our path as QEMU names it.

        >>> Passage((("/state", "/run/way"),)).theirs("/state/x.img")
        '/run/way/x.img'
        """
        return _moved(path, self.ways)

    def ours(self, path: str) -> str:
        """A path that QEMU or libvirt said, as we name it."""
        return _moved(path, tuple((theirs, ours) for ours, theirs in self.known))


DIRECT = Passage()
"""QEMU walks where we do."""


def _moved(path: str, ways: tuple[tuple[str, str], ...]) -> str:
    for source, target in ways:
        if lies_in(path, source):
            return target + path[len(source) :]
    return path
