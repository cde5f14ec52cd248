"""One driver of this host per range of machines' user ids."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

from vmdriver.errors import ConfigError

PLACE = Path("/run/vmd-uids")
"""A file for each range that a driver has, with its name in it: it holds a lock on it as long as it
runs.
"""
_WAIT_S = 5.0
"""A predecessor that is ending holds its own for a moment."""


class UidClaim:
    """The numbers from `first` to `last`, had by the driver of that name (its state directory)
    until the process ends or `release`. `in_use`: whether a driver of such a name that runs no
    more has machines or files that numbers from the second to the third belong to.
    """

    def __init__(
        self,
        first: int,
        last: int,
        name: str,
        in_use: Callable[[str, int, int], bool],
        place: Path = PLACE,
    ) -> None:
        self._first, self._last, self._place = first, last, place
        self._name, self._in_use = name, in_use
        self._descriptor = -1

    async def acquire(self, wait_s: float = _WAIT_S) -> None:
        """ConfigError when another driver has a number of it, or nothing can be noted."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while other := self._try():
            if loop.time() > deadline:
                raise ConfigError(
                    f"machine_uids: {other}, which overlaps {self._first}-{self._last}",
                    resolution="set machine_uids to other numbers",
                )
            await asyncio.sleep(0.05)

    def release(self) -> None:
        """Let another driver have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _try(self) -> str:
        """Take it; who is in the way, or ""."""
        try:
            self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
            whole = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(whole, fcntl.LOCK_EX)  # everybody holds it for microseconds
                return self._in_the_way() or self._take()
            finally:
                os.close(whole)
        except OSError as error:
            raise ConfigError(
                f"machine_uids: {self._place} cannot be used to tell other drivers: "
                f"{error.strerror}",
                resolution="remove what is there",
            ) from error

    def _in_the_way(self) -> str:
        for path in self._place.iterdir():
            found = re.fullmatch(r"([0-9]+)-([0-9]+)", path.name)
            if found and int(found[1]) <= self._last and self._first <= int(found[2]):
                descriptor, name = _locked(path), path.read_text(errors="replace")
                if descriptor < 0:
                    return f"the driver of {name} has {path.name}"
                os.close(descriptor)
                if name and self._in_use(name, int(found[1]), int(found[2])):
                    if name != self._name:
                        return f"{name} has machines or files of {path.name}"
                    if not self._contains(int(found[1]), int(found[2])):
                        continue  # its range was another: what has those numbers keeps them
                path.unlink()
        return ""

    def _contains(self, first: int, last: int) -> bool:
        return self._first <= first and last <= self._last

    def _take(self) -> str:
        self._descriptor = _locked(self._place / f"{self._first}-{self._last}")
        os.write(self._descriptor, self._name.encode())
        return ""


def _locked(path: Path) -> int:
    """A descriptor that holds the lock on that file, or -1: somebody else's does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return -1
    return descriptor
