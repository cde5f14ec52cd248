"""One driver process per state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from vmdriver.errors import ConfigError

_LOCK_WAIT_S = 5.0
"""A predecessor ends within 2 s of its gateway's death, or of a SIGTERM; a gateway waits 10 s for
its driver's answer.
"""


class StateLock:
    """One driver process per state directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    async def acquire(self, wait_s: float = _LOCK_WAIT_S) -> None:
        """Wait a little for a predecessor that is ending. ConfigError if it does not."""
        import asyncio  # not for the guardian, which never waits for it

        self._descriptor = self._open()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while not self.try_once():
            if loop.time() > deadline:
                raise ConfigError(
                    f"state_dir: another driver works on {self._path.parent}",
                    resolution="stop it, or use another state_dir",
                )
            await asyncio.sleep(0.05)

    def try_open(self) -> bool:
        """Take it if it is free, without waiting."""
        try:
            self._descriptor = self._open()
        except OSError:
            return False
        return self.try_once()

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError:  # immutable; a lock needs no right to write
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def try_once(self) -> bool:
        """Take it if it is free."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Let the next one in."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
