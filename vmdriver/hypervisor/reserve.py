"""Space for libvirt's return to running machines, where the disk is full.

libvirt writes the status of each machine anew when it begins, and ends every machine for which
it cannot (qemuProcessReconnect; seen with 9.0: a driver that was started on a full disk cost
every machine). So it is not opened before it can.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger(__name__)
RESERVE_BYTES = 8 * 2**20
_LEAST_BYTES = 2**20
_TIMES = 4
"""libvirt writes a machine's status beside the old one, a few times."""


class Reserve:
    """A file that gives its space back when a driver starts. Below libvirt's root; only for
    whoever holds the state directory's lock.
    """

    def __init__(
        self,
        root: Path,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        pause_s: float = 0.5,
    ) -> None:
        self._root, self._free, self._pause_s = root, free, pause_s
        self._file = root / "reserve"

    def _needed_bytes(self) -> int:
        """0: no machine may be running."""
        states = [path.stat().st_size for path in self._root.glob("run/qemu/*.xml")]
        return _LEAST_BYTES + _TIMES * sum(states) if states else 0

    def give_back(self) -> None:
        """Let the space go: whatever writes now, writes for the start."""
        self._file.unlink(missing_ok=True)

    async def enough(self) -> None:
        """Returns when there is space, and has been for a moment: what was given back may be taken
        by a machine. Waits for it while a machine may be running; they go on meanwhile. After
        the states of machines that have ended are removed.
        """
        told = False
        while not await self._stays():
            if not told:
                _log.warning(
                    "the disk of %s is full: libvirt would end the machines that run; "
                    "waiting for %d KiB",
                    self._root,
                    self._needed_bytes() // 1024,
                )
            told = True
            await asyncio.sleep(self._pause_s)

    async def _stays(self) -> bool:
        needed = self._needed_bytes()
        if not needed:
            return True
        if self._free(self._root) < needed:
            return False
        await asyncio.sleep(self._pause_s / 2)
        return self._free(self._root) >= needed

    def take(self) -> None:
        """Keep space back for the next start, where there is plenty."""
        if self._free(self._root) < 8 * RESERVE_BYTES:
            return
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError as error:
            _log.warning("no space is kept back for the next start: %s", error)
            self._file.unlink(missing_ok=True)
