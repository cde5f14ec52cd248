"""What the program that runs services on this host (systemd) is told of a driver. sd_notify(3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.errors import CommandError
from vmdriver.host import process

_log = logging.getLogger(__name__)
_STARTING_S = 10.0
"""How often it is told that the start goes on."""
_MORE_S = 60
"""Until it may give up after it was told so last."""
_AGAIN_S = 0.2
"""After it had no room for the one word that it waits for."""
SYSTEMD = Path("/run/systemd/system")
"""There where systemd runs the host (sd_booted(3))."""
ASKED = ("systemctl", "show", "--property=SystemState", "--value")
_BEATS = 3
"""In the time of the watchdog."""


async def is_host_ending() -> bool:
    """Whether systemd runs this host and is shutting it down. Asking costs some milliseconds, where
    systemd is there, and two seconds at most (systemctl(1), property SystemState).
    """
    if not SYSTEMD.is_dir():
        return False
    try:
        done = await process.run(ASKED, deadline_s=2)
    except CommandError as error:
        _log.info("whether this host is shut down is not known: %s", error)
        return False
    return done.stdout.strip() == b"stopping"


@dataclass(frozen=True)
class ServiceManager:
    """`address`: its socket, "": there is none, and nothing is told. `watchdog_s`: how long the
    driver may say nothing, 0: as long as it likes.
    """

    address: str = ""
    watchdog_s: float = 0.0
    _ready: asyncio.Event = field(
        default_factory=asyncio.Event, init=False, compare=False, repr=False
    )
    """It was told that the start is done."""

    def tell(self, *words: str) -> bool:
        """Never waits, never fails: a driver is none the worse for a manager that does not read.
        False: it has no room just now, and was not told.
        """
        if not self.address:
            return True
        name = "\0" + self.address[1:] if self.address[0] == "@" else self.address
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            with socket.socket(socket.AF_UNIX, kind) as own:
                own.sendto("\n".join(words).encode(), name)
        except OSError as error:
            _log.debug("the service manager was not told %s: %s", words, error)
            return not isinstance(error, BlockingIOError)
        return True

    async def accompany(self, ready: asyncio.Event) -> None:
        """Until it is cancelled: that the start goes on, that it is done, and from then on that the
        loop turns. A loop that does not turn says nothing, and is ended.
        """
        while not ready.is_set():
            self.tell(f"EXTEND_TIMEOUT_USEC={_MORE_S * 1_000_000}", "STATUS=starting")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ready.wait(), _STARTING_S)
        while not self.tell("READY=1", "STATUS=serving"):  # noqa: ASYNC110 - nobody says so
            # Lost, it would have the driver ended for a start that takes too long.
            await asyncio.sleep(_AGAIN_S)
        self._ready.set()
        while self.watchdog_s:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self.watchdog_s / _BEATS)

    def reloading(self) -> None:
        """To be followed by `reloaded`. Nothing is told of one while the start goes on: what ends a
        reload is what ends a start.
        """
        if not self._ready.is_set():
            return
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def reloaded(self) -> None:
        """The reload has come to its end, whether or not anything was changed."""
        if self._ready.is_set():
            self.tell("READY=1")
