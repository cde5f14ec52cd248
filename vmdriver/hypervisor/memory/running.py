"""A running machine's memory, out of QEMU: it is written, in passes, while the machine goes on; it
stands still for the last ones alone.

QEMU ends such a writing by itself, with the machine stopped, as soon as it takes what is left for
little: too early for us, whose workload is to be frozen by its own kernel before that. So it must
not come to that end. What is little for it is what it has written in 1 ms (`downtime-limit`),
measured over 100 ms: shortly before the first pass ends it is made so slow that this is next to
nothing. And the reader of the stream waits before each further pass, so that QEMU cannot write on
(some pages are on their way). Then the workload is frozen, the machine paused, the rest written.

`pause-before-switchover` is no help for that: the machine stands still there already, and QEMU
refuses to let it go on ("Migration is not finalized yet"). It does show that QEMU came to
its end nevertheless: then all is given up, and written again of a machine that stands still.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from dataclasses import dataclass, replace
from typing import Any

from vmdriver.errors import DriverError, HypervisorError, TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.hypervisor import monitor
from vmdriver.hypervisor.memory import capture
from vmdriver.hypervisor.memory.confined_reader import ConfinedReader
from vmdriver.hypervisor.memory.ram_stream import PAGE
from vmdriver.hypervisor.memory.standing import Standing
from vmdriver.lifecycle.ports.memory import Captured

_log = logging.getLogger(__name__)
_PIPE_BYTES = 64 * 1024
"""What is on its way when the reader waits."""
_POLL_S = 0.002


@dataclass(frozen=True)
class Pace:
    """How a machine's memory is written while it runs."""

    first_rate: int = capture.UNLIMITED
    """Bytes per second of the first pass, up to there:"""
    slow_from: int = 32 * 2**20
    """From so many bytes before the end of the first pass on, or an eighth of the memory."""
    still_rate: int = 10
    slow_rate: int = 96 * 2**20
    """Bytes per second: a page each 100 ms, and what makes 1 ms of it some 25 pages."""
    pass_rate: int = 256 * 2**20
    """Of a further pass that has no more than that to write, for the same reason."""
    window_s: float = 0.21
    """Two of QEMU's measurements: the second one is of nothing but slow writing."""
    little: int = 8 * 2**20
    """To be left when the machine is stopped: some 15 ms."""
    most_passes: int = 8
    most_times: float = 2
    """Of the memory's pages, while it runs: a machine that changes faster is stopped then."""
    downtime_ms: int = capture.LEAST_DOWNTIME_MS
    """QEMU's own idea of little."""

    def more_careful(self) -> Pace:
        """For a second try: on a busy host QEMU was faster than our look at it, or its guest
        changes next to nothing.
        """
        first = min(self.first_rate, self.pass_rate)
        return replace(self, first_rate=first, slow_rate=self.slow_rate // 4)


PACE = Pace()


class _EarlyError(Exception):
    """QEMU has come to its end before the machine stood still."""


class _Writing:
    """One writing by passes, and how far it is."""

    def __init__(
        self,
        machine: Any,
        reader: ConfinedReader,
        memory_bytes: int,
        pulse: Pulse,
        pace: Pace,
    ) -> None:
        self._machine, self._pulse = machine, pulse
        self.reader, self.pace = reader, pace
        self._longest_s = capture.longest_s(memory_bytes)
        self._end = time.monotonic() + self._longest_s
        self._most_bytes = pace.most_times * memory_bytes
        self.slow_from = max(pace.slow_from, memory_bytes // 8)
        self.remaining = self.passes = self.transferred = self.written = 0

    def look(self) -> str:
        """QEMU's word for it. HypervisorError when it failed, TimedOut when it does not get on."""
        answer = monitor.ask(self._machine, "query-migrate")
        before = self.transferred
        with monitor.reading("query-migrate"):
            status = str(answer.get("status", "none"))
            ram = answer.get("ram", {})
            self.remaining = int(ram.get("remaining", 0))
            self.passes = int(ram.get("dirty-sync-count", 0))
            self.transferred = int(ram.get("transferred", 0))
            pages = int(ram.get("normal", 0)) + int(ram.get("duplicate", 0))
            self.written = pages * PAGE
            problem = str(answer.get("error-desc", status))[:400]
        if status in {"failed", "cancelled", "none"}:
            raise HypervisorError(f"QEMU could not write the memory: {problem}")
        if self.transferred != before:
            self._pulse.beat()
        late = time.monotonic() > min(self._pulse.at + capture.STALL_S, self._end)
        if self._pulse.given_up or late:
            raise TimedOut("QEMU does not get on with writing the memory")
        return status

    def runs(self) -> None:
        """_EarlyError when it does not any more; HypervisorError where nobody reads on."""
        if self.look() not in {"setup", "active"}:
            raise _EarlyError
        if self.reader.is_over:
            raise HypervisorError("nobody reads the memory to its end")

    def begin_anew(self) -> None:
        """From now on it may take as long again."""
        self._end = time.monotonic() + self._longest_s

    def rate(self, bytes_per_s: int) -> None:
        monitor.ask(
            self._machine, "migrate-set-parameters", **{"max-bandwidth": bytes_per_s}
        )

    @property
    def is_little(self) -> bool:
        return self.remaining <= self.pace.little

    @property
    def is_enough(self) -> bool:
        """It is not waited any longer for little to be left."""
        most = self.pace.most_passes
        return self.passes >= most or self.written >= self._most_bytes


def to_memory(
    machine: Any,
    memory: str,
    memory_bytes: int,
    pulse: Pulse,
    standing: Standing,
    pace: Pace = PACE,
) -> Captured:
    """Write it to the empty file `memory` while the machine runs; at the end it stands still. See
    ports.MachineMemory.capture_running.
    """
    for each in (pace, pace.more_careful()):
        try:
            return _write(machine, memory, memory_bytes, pulse, standing, each)
        except _EarlyError:
            _log.info("%s: QEMU came to its end too early", machine.name())
            os.truncate(memory, 0)
    _stand(standing, pulse)
    why = "QEMU came to its end before the workload was frozen"
    return capture.to_memory(machine, memory, memory_bytes, pulse, why)


def _write(
    machine: Any,
    memory: str,
    memory_bytes: int,
    pulse: Pulse,
    standing: Standing,
    pace: Pace,
) -> Captured:
    """_EarlyError: the machine runs, and has not been asked to stand still."""
    text = capture.describe(machine)
    source, target = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        reader = capture.reader(source, memory, memory_bytes, text, by_pass=True)
    except BaseException:
        os.close(target)
        raise
    writing = _Writing(machine, reader, memory_bytes, pulse, pace)
    try:
        capture.hand_over(machine, target, pace.downtime_ms, running=True)
        writing.rate(pace.first_rate)
        monitor.ask(machine, "migrate", uri="fd:vmdriver-memory")
        why = _approach(writing)
        _stand(standing, pulse)
        writing.begin_anew()
        reader.go_on(to_the_end=True)
        _finish(machine, writing)
    except BaseException as error:
        better = _of_reader(reader, error)
        reader.end()
        capture.give_up(machine)
        if better is None:
            raise
        raise better from error
    found = reader.found(capture.STALL_S, lambda: not pulse.given_up)
    return capture.captured(text, found, why)


def _of_reader(reader: ConfinedReader, error: BaseException) -> DriverError | None:
    """A better error: a reader that had something to read says more than QEMU, whose writing has
    failed for it.
    """
    reader.at_pass(0)  # it may have ended just now
    if not (isinstance(error, HypervisorError) and reader.is_over):
        return None
    try:
        reader.found(capture.STALL_S, lambda: True)
    except DriverError as found:
        return None if "ended before its end" in found.message else found
    return None


def _approach(writing: _Writing) -> str:
    """Up to where little is left, and QEMU waits for the reader. What is to be said of it."""
    pace, reader = writing.pace, writing.reader
    while writing.passes < 2 and not 0 < writing.remaining <= writing.slow_from:
        writing.runs()
        time.sleep(_POLL_S)
    writing.rate(pace.still_rate)
    end = time.monotonic() + pace.window_s
    while not (waits := reader.at_pass(_POLL_S)) and time.monotonic() < end:
        writing.runs()
    writing.rate(pace.slow_rate)
    while True:
        while not waits:
            writing.runs()
            waits = reader.at_pass(_POLL_S)
        writing.runs()
        if writing.is_little or writing.is_enough:
            break
        small = writing.remaining <= pace.pass_rate
        writing.rate(pace.pass_rate if small else capture.UNLIMITED)
        reader.go_on(to_the_end=False)
        waits = False
    writing.rate(capture.UNLIMITED)
    left = f"{writing.remaining >> 20} MiB were left"
    return "" if writing.is_little else f"it changes faster than it is written: {left}"


def _stand(standing: Standing, pulse: Pulse) -> None:
    def go_on() -> bool:
        pulse.beat()  # nobody else says that a freeze gets on; it has its own limit
        return not pulse.given_up

    if not standing.wait(go_on):
        raise HypervisorError("the machine does not stand still for its memory")


def _finish(machine: Any, writing: _Writing) -> None:
    while (status := writing.look()) != "completed":
        if status == "pre-switchover":
            monitor.ask(machine, "migrate-continue", state="pre-switchover")
        time.sleep(_POLL_S)
