"""Runs the programs that turn layers into a disk, each in its box."""

from __future__ import annotations

import logging
from collections.abc import Callable

from vmdriver.errors import CommandError, ImageError, Killed, Late
from vmdriver.host import process
from vmdriver.host.confined.box import Box
from vmdriver.host.threads import Threads

_log = logging.getLogger(__name__)


def _nothing() -> None:
    pass


class Tools:
    """Each ends within `deadline_s`."""

    def __init__(self, deadline_s: float, threads: Threads) -> None:
        self._deadline_s, self._threads = deadline_s, threads

    async def run(
        self, command: list[str], box: Box, clear: Callable[[], None] = _nothing
    ) -> process.Completed:
        """One that is killed is begun once more, `clear` having removed what it had made: that
        says nothing about the image. ImageError.
        """
        try:
            return await self._once(command, box)
        except Killed as error:
            _log.warning("%s: it is tried once more", error)
        try:
            await self._threads.run(clear)
            return await self._once(command, box)
        except Killed as error:
            raise ImageError(
                f"the image cannot be turned into a disk: {error} twice",
                detail=error.detail,
                reason=Killed.reason,
                resolution="this says nothing about the image: look in the host's log for who "
                "ended the program (out of memory?), then create the sandbox again",
            ) from error

    async def _once(self, command: list[str], box: Box) -> process.Completed:
        try:
            return await process.run(command, deadline_s=self._deadline_s, box=box)
        except Killed:
            raise
        except Late as error:
            raise ImageError(
                f"the image cannot be turned into a disk: {error}",
                detail=error.detail,
                resolution="look whether this host's disks or processors are overloaded, then "
                "create the sandbox again",
            ) from error
        except CommandError as error:
            raise ImageError(
                f"the image cannot be turned into a disk: {error}",
                detail=error.detail,
                resolution="the image may be damaged; push it again",
            ) from error
