"""Ends with the process that launched us.

A gateway that launches a driver and is killed tells nobody. What stayed behind would hold the
state directory's lock against the driver of the next gateway. The machines go on without us.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmdriver.errors import ConfigError

_log = logging.getLogger(__name__)
_LOOK_S = 0.25
"""How often /proc is read where the kernel has no pidfd_open (before Linux 5.3)."""
_ORDERLY_END_S = 1.5
"""After the launcher's death. What is under way then is in the ledgers: the next driver
finishes or undoes it, as after a kill.
"""


@dataclass(frozen=True)
class _Stat:
    """What /proc/<pid>/stat says of a process: its state letter, its start in clock ticks since
    the host's boot.
    """

    state: str
    started: int

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): pid (comm) state ...; comm may hold anything, so read behind its last bracket.
    fields = text.rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[19]))


class LauncherWatch:
    """Watches the process `pid`, which has launched the driver `own`. Raises ConfigError when it
    is not there any more.
    """

    def __init__(self, pid: int, own: int) -> None:
        self._pid = pid
        self._descriptor = -1
        try:
            self._descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            raise _gone(pid) from None
        except OSError as error:
            _log.debug("pidfd_open: %s; /proc is read instead", error.strerror)
        self._seen = _stat(pid)
        us = _stat(own)
        if self._seen is None and self._descriptor < 0:
            raise _gone(pid)
        # Whoever launched us is not younger than us: a younger process only has its number.
        reused = self._seen and us and self._seen.started > us.started
        if reused or self._ended(0):
            self._close()
            raise _gone(pid)

    def start(self, stop: asyncio.Event, end: Callable[[int], object]) -> None:
        """Set `stop` when the process ends, and call `end(0)`, which ends this process, when that
        took too long. From a thread of its own: the loop may be busy. To be called in the loop.
        """
        loop = asyncio.get_running_loop()

        def watch() -> None:
            while not self._ended(_LOOK_S):
                continue
            _log.warning(
                "the process that launched this driver (%d) has ended; so does the driver",
                self._pid,
            )
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                loop.call_soon_threadsafe(stop.set)
            time.sleep(_ORDERLY_END_S)
            end(0)

        threading.Thread(target=watch, name="launcher-watch", daemon=True).start()

    def _ended(self, wait_s: float) -> bool:
        """Whether it has ended, within `wait_s`."""
        if self._descriptor >= 0:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLIN)
            return bool(poll.poll(wait_s * 1000))
        now, seen = _stat(self._pid), self._seen
        if now is None or not now.alive or (seen and seen.started != now.started):
            return True
        time.sleep(wait_s)
        return False

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _gone(pid: int) -> ConfigError:
    return ConfigError(
        f"expected_peer_pid: the process {pid} that launched this driver is not there any more",
        resolution="leave the setting out where no gateway launches the driver",
    )
