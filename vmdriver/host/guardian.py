"""A small process that outlives the driver, to end what must not: see `strays`; `guarding` begins
it. What it imports, each driver's has in memory: nothing but a few of Python's own modules.

Neither a process group nor PR_SET_PDEATHSIG does that: helpers begin programs of their own, the
signal is bound to the thread that forked and is lost at an exec of other rights, and libvirt's
probes are daemons. It waits on a descriptor of the driver's process (pidfd_open(2)), which
nobody can inherit by mistake as the end of a pipe can be.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from vmdriver.host import strays
from vmdriver.host.lock import StateLock

_QUIET_S = 0.5
_LONGEST_S = 10.0
_LOOK_S = 0.03


@dataclass(frozen=True)
class Charge:
    """What is ended after one driver process. `roots`: names of libvirt's root directory; none
    where libvirt runs outside.
    """

    state_dir: Path
    lock: Path
    roots: tuple[str, ...] = ()
    token: str = field(default_factory=lambda: os.urandom(8).hex())

    def end_predecessors(self) -> int:
        """End what earlier drivers of this state directory left. For whoever holds its lock and
        has not opened libvirt yet. Blocking; how many that were.
        """
        return strays.end(
            lambda p: (
                strays.is_helper(p, self.state_dir, but=self.token)
                or strays.is_probe(p, self.roots)
            )
        )

    def end_probes(self) -> int:
        """End what libvirt has begun in this process and not waited for. Blocking."""
        return strays.end(lambda p: strays.is_probe(p, self.roots), deadline_s=0.5)

    def end_own(self) -> None:
        """End what the driver with this token left, until nothing has come up for a while: what
        was being forked shows what it is only after its exec. Blocking.
        """
        begun = quiet_since = time.monotonic()
        while (now := time.monotonic()) - quiet_since < _QUIET_S:
            if self._end_once():
                quiet_since = now
            if now - begun > _LONGEST_S:  # one that the kernel holds
                return
            time.sleep(_LOOK_S)

    def _end_once(self) -> int:
        """The next driver's helpers have other tokens. Its probes look like ours, so that they
        are ended only while there is none; it has ended ours when it began.
        """
        lock = StateLock(self.lock)
        alone = not self.lock.exists() or lock.try_open()
        try:
            return strays.end_once(
                lambda p: (
                    strays.is_helper(p, self.state_dir, of=self.token)
                    or (alone and strays.is_probe(p, self.roots))
                )
            )
        finally:
            lock.release()


def _wait_for_the_end_of(driver: int) -> None:
    """Of our parent: once it has ended, we have another one."""
    with contextlib.suppress(OSError):  # no such process, or a kernel before Linux 5.3
        descriptor = os.pidfd_open(driver)
        if os.getppid() == driver:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
    while os.getppid() == driver:
        time.sleep(_LOOK_S)


def main() -> None:
    """The program's words: DRIVER-PID STATE-DIR LOCK TOKEN [LIBVIRT-ROOT…]"""
    # Whoever ends the driver with its group or its terminal means the driver.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    driver, state_dir, lock, token, *roots = sys.argv[1:]
    _wait_for_the_end_of(int(driver))
    Charge(Path(state_dir), Path(lock), tuple(roots), token).end_own()
