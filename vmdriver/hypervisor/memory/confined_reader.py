"""Has a memory stream read by a process without rights (`ram_reader`): what a QEMU wrote is looked
at by nobody who could do anything with it.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vmdriver.errors import DriverError, HypervisorError, StorageError, TimedOut
from vmdriver.host import process
from vmdriver.hypervisor.memory.ram_reader import ANSWER, CUT, FILE_ERROR, REFUSED
from vmdriver.hypervisor.memory.ram_stream import PAGE, STATE_BYTES, Split
from vmdriver.lifecycle.ports.host import Ownership

STREAM_REFUSED = "StreamRefused"
"""Reason of what is said of a stream that is none of such a machine."""
_NOBODY = 65534
_PACKAGES = str(Path(__file__).parents[3])
_BEGIN = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from vmdriver.hypervisor.memory.ram_reader import main; main()"
)
_LOOK_S = 0.5
_TRIAL_S = 10.0
_MOST_ANSWER = ANSWER.size + STATE_BYTES + 65536


class ConfinedReader:
    """One process for one stream. `source` and `memory` are given to it, and closed here; `user`
    is the machine's own, whose memory it is; `once`: which went on meanwhile. CommandError
    when it cannot be begun.
    """

    def __init__(
        self,
        source: int,
        memory: int,
        memory_bytes: int,
        user: Ownership,
        *,
        once: bool = False,
    ) -> None:
        self._memory_bytes = memory_bytes
        self._answer, theirs = os.pipe2(os.O_CLOEXEC)
        uid, gid = user.uid or _NOBODY, user.gid or _NOBODY
        given = (source, memory, theirs)
        numbers = (*given, memory_bytes, uid, gid, int(once))
        words = [_PACKAGES, *map(str, numbers)]
        python = [sys.executable, "-I", "-S", "-c", _BEGIN]
        try:
            self._process = process.begin([*python, *words], given)
        except BaseException:
            os.close(self._answer)
            raise
        finally:
            for descriptor in given:
                os.close(descriptor)

    def found(self, deadline_s: float, go_on: Callable[[], bool]) -> Split:
        """What it has found, when the stream has ended. It has ended then, whatever comes of it.
        TimedOut after `deadline_s` or when `go_on` says no; HypervisorError for what is no stream
        of such a machine; StorageError for the memory's file.
        """
        try:
            data = self._read(time.monotonic() + deadline_s, go_on)
        finally:
            self.end()
        if len(data) < ANSWER.size:
            raise HypervisorError(
                f"the reader of QEMU's memory stream has ended: {self._process.ended()}"
            )
        kind, number, length = ANSWER.unpack_from(data)
        content = data[ANSWER.size :]
        stored_right = number <= self._memory_bytes or kind != CUT
        if length != len(content) or length > STATE_BYTES or not stored_right:
            raise HypervisorError("the reader of QEMU's memory stream makes no sense")
        if kind == CUT:
            return Split(content, self._memory_bytes, number)
        words = content[:400].decode(errors="replace")
        text = "".join(c if c.isprintable() else "?" for c in words)
        if kind == FILE_ERROR:
            raise StorageError(
                f"the memory cannot be written: {text}",
                resolution="free space in the state directory",
            )
        if kind == REFUSED:
            raise HypervisorError(text, reason=STREAM_REFUSED)
        raise HypervisorError(
            f"nobody can read QEMU's memory stream without rights: {text}",
            reason="IsolationUnavailable",
        )

    def end(self) -> None:
        """At once, if it has not ended. May be repeated."""
        self._process.kill()
        if self._answer >= 0:
            os.close(self._answer)
            self._answer = -1

    def _read(self, deadline: float, go_on: Callable[[], bool]) -> bytes:
        data = bytearray()
        poll = select.poll()
        poll.register(self._answer, select.POLLIN)
        while len(data) <= _MOST_ANSWER:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not go_on():
                raise TimedOut("QEMU's memory stream does not come to its end")
            if not poll.poll(min(left_s, _LOOK_S) * 1000):
                continue
            chunk = os.read(self._answer, 2**20)
            if not chunk:
                break
            data += chunk
        return bytes(data)


def trial(user: Ownership) -> str:
    """Why no memory stream could be read here; "" if it could: a reader begins, and finds that
    there is none. Blocking, some 30 ms.
    """
    source, memory = os.open(os.devnull, os.O_RDONLY), os.memfd_create("trial")
    try:
        ConfinedReader(source, memory, PAGE, user).found(_TRIAL_S, lambda: True)
    except DriverError as error:
        return "" if error.reason == STREAM_REFUSED else error.message
    return "it has read what was not there"
