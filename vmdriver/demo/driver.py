"""The demo's own driver: a process beside it, with nothing of the host's configuration."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vmdriver.demo.life import say
from vmdriver.host import process

VMDRIVER = (sys.executable, "-P", "-m", "vmdriver")
_STAND_IN = Path(__file__).with_name("stand-in-supervisor")
_INSTANCE = "vmdriver-demo"
SOCKET_FOLDER = Path("/run", _INSTANCE)
"""One for each host: name and addresses of its machines are the same wherever a demo works."""
_ADDRESSES = "10.0.127.0/24"
"""Beside those of a driver that runs here as it was installed."""
_LAST_LINES = 15
"""Of its log, shown when the driver has died."""


class DriverDied(RuntimeError):
    """The driver has ended while the demo needed it."""


@dataclass(frozen=True)
class Place:
    """Where the demo works. `images`: the folder with its image. `more`: further flags."""

    state: Path
    images: Path
    endpoint: str
    more: Sequence[str] = ()

    @property
    def socket(self) -> Path:
        """A short path: Unix sockets may have 107 bytes."""
        return SOCKET_FOLDER / "driver.sock"

    @property
    def log(self) -> Path:
        """Of the driver."""
        return self.state.parent / f"{self.state.name}.log"

    def flags(self) -> list[str]:
        """Settings of the driver, and of the commands that look at what it has left."""
        return [
            *("--config", "/dev/null", "--instance", _INSTANCE),
            *("--state-dir", str(self.state), "--bind-socket", str(self.socket)),
            *("--openshell-endpoint", self.endpoint, "--address-pool", _ADDRESSES),
            *("--supervisor-path", str(_STAND_IN), "--vcpus", "1", "--mem-mib", "512"),
            *("--allowed-image-dirs", str(self.images), "--default-image", ""),
            *self.more,
        ]


@contextmanager
def driver(place: Place, command: Sequence[str] = VMDRIVER) -> Iterator[Path]:
    """vmdriver serve; yields its socket. DriverDied where the driver does not live
    as long as it is needed.
    """
    words = [*command, "serve", *place.flags()]
    program = process.begin(words, log=place.log)
    try:  # at once: whoever is told to end by now has to end it
        say(f"vmdriver serve is started; its log is {place.log}")
        with _noticed(program, place.log):
            yield place.socket
    finally:
        program.tell(signal.SIGTERM)
        program.wait(10)


@contextmanager
def _noticed(program: process.Helper, log: Path) -> Iterator[None]:
    """Whatever the main thread waits for, it is told at once when the process ends."""
    over = threading.Event()

    def tell(_number: int, _frame: object) -> None:
        if over.is_set():
            return
        over.set()
        last = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        said = "\n".join(f"    {line}" for line in last)
        raise DriverDied(
            f"the driver has ended with {program.ended()}; its last lines:\n{said}"
        )

    def watch() -> None:
        program.wait()
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)

    signal.signal(signal.SIGUSR1, tell)  # for good: it may come late
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()
