"""Sees to it that a guardian is beside this driver (`guardian`)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

from vmdriver.errors import CommandError
from vmdriver.host import process, strays
from vmdriver.host.guardian import Charge

_log = logging.getLogger(__name__)
_AGAIN_S = 1.0
_PACKAGES = str(Path(__file__).parents[2])
_BEGIN = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from vmdriver.host.guardian import main; main()"
)
"""Without what an installation has added to Python: it costs a fifth of a start, for nothing."""


class Guardian:
    """The process. When it ends before us, another one takes its place."""

    def __init__(self, charge: Charge) -> None:
        self._charge = charge
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin it. It need not have come up: when it does and finds that we have ended, it
        does its work.
        """
        process.mark_helpers(strays.mark(self._charge.state_dir, self._charge.token))
        guardian = await self._spawn()
        self._watching = asyncio.create_task(self._watch(guardian), name="guardian")

    def leave(self) -> None:
        """It stays, and ends after us."""
        if self._watching is not None:
            self._watching.cancel()

    async def _spawn(self) -> asyncio.subprocess.Process | None:
        charge = self._charge
        words = [str(charge.state_dir), str(charge.lock), charge.token, *charge.roots]
        python = [sys.executable, "-I", "-S", "-c", _BEGIN, _PACKAGES]
        command = [*python, str(os.getpid()), *words]
        try:
            return await process.spawn(command)
        except CommandError as error:
            _log.warning("there is no guardian of our programs: %s", error)
            return None

    async def _watch(self, guardian: asyncio.subprocess.Process | None) -> None:
        while True:
            if guardian is not None:
                status = await guardian.wait()
                _log.warning("the guardian of our programs ended (status %d)", status)
            await asyncio.sleep(_AGAIN_S)
            guardian = await self._spawn()
