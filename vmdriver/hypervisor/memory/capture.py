"""A stopped machine's memory and devices, out of QEMU: its own migration, asked for through
libvirt's monitor passthrough.

Into a pipe, cut in two while it comes (confined_reader.py): the shortest way to a checkpoint, for a
machine that ends anyway. Or into a file that is cut afterwards: the machine can go on as
soon as QEMU has written it, at the price of twice the disk space for a moment; or while it is
written (meanwhile.py).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from vmdriver.errors import DriverError, HypervisorError, StorageError, TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.host.plain_file import open_plain
from vmdriver.hypervisor import domain_reading, monitor
from vmdriver.hypervisor.memory.confined_reader import STREAM_REFUSED, ConfinedReader
from vmdriver.hypervisor.memory.ram_stream import STATE_BYTES, Split
from vmdriver.lifecycle.ports.memory import Captured, Streamed

_PIPE_BYTES = 1024 * 1024
_POLL_S = 0.004
MEANWHILE = "background-snapshot"
"""QEMU's capability of writing the memory of a moment while the machine goes on."""
STALL_S = 8.0
"""Without a byte for that long, whoever takes them is not there any more."""
DEADLINE_S = STALL_S + 1.0
"""The same where QEMU does not even answer."""
LONGEST_S, _SLOWEST = 60.0, 16 * 2**20
"""All of it may take so many seconds, and one for each so many bytes of the machine's memory."""
_GIVE_UP_S = 5.0
_LONGEST_WORDS = 400
_UNLIMITED = 2**40
_UNDER_WAY = {"setup", "active", "device", "pre-switchover", "cancelling"}
_NO_SPACE_BYTES = 16 * 2**20
"""With less than this free, it was space that a failing QEMU lacked: it does not say."""


def to_memory(machine: Any, memory: str, memory_bytes: int, pulse: Pulse) -> Captured:
    """Write it to the empty file `memory`, and what is not RAM to memory. See
    ports.MachineMemory.capture.
    """
    text = describe(machine)
    source, target = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        reader = _reader(source, memory, memory_bytes, text)
    except BaseException:
        os.close(target)
        raise
    try:
        hand_over(machine, target)
        problem = migrate(machine, pulse, longest_s(memory_bytes))
        try:
            found = reader.found(STALL_S, lambda: not pulse.given_up)
        except HypervisorError as error:
            # A reader that had nothing to read says less than QEMU.
            raise _not_whole(problem, error) from error
    finally:
        reader.end()
    if problem:
        raise HypervisorError(f"QEMU could not write the memory: {problem}")
    return _captured(text, found)


def to_stream(machine: Any, path: str, pulse: Pulse) -> Streamed:
    """Write it to a new file, as it comes. See ports.MachineMemory.stream."""
    text = describe(machine)
    memory_bytes = domain_reading.read_memory_bytes(text)
    target = new_file(path)
    watched = os.dup(target)
    check = partial(check_length, watched, memory_bytes)
    try:
        hand_over(machine, target)
        problem = migrate(machine, pulse, longest_s(memory_bytes), check)
        check()
    except BaseException:
        os.truncate(watched, 0)  # QEMU may have it open for ever
        raise
    finally:
        os.close(watched)
    if problem:
        raise not_streamed(path, problem)
    return Streamed(path, text)


def new_file(path: str) -> int:
    """For a stream: its descriptor."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600)


def check_length(stream: int, memory_bytes: int) -> None:
    """HypervisorError for a file that is longer than a stream of so much memory can be."""
    if os.fstat(stream).st_size > _most_bytes(memory_bytes):
        raise _refused("is longer than all of the machine's memory")


def not_streamed(path: str, problem: str) -> DriverError:
    """To be raised for a stream that QEMU could not write to that file."""
    if shutil.disk_usage(Path(path).parent).free < _NO_SPACE_BYTES:
        return StorageError(
            "the memory cannot be written: no space left",
            detail=problem,
            resolution="free space in the state directory",
        )
    return HypervisorError(f"QEMU could not write the memory: {problem}")


def split(streamed: Streamed, memory: str, memory_bytes: int) -> Captured:
    """Cut it in two. The file that it was in is gone afterwards."""
    try:
        source = open_plain(streamed.path)
        Path(streamed.path).unlink()
    except OSError as error:
        raise _not_written(error) from error
    text, once = streamed.domain_xml, streamed.meanwhile
    reader = _reader(source, memory, memory_bytes, text, once=once)
    found = reader.found(longest_s(memory_bytes), lambda: True)
    return _captured(streamed.domain_xml, found)


def longest_s(memory_bytes: int) -> float:
    """How long a QEMU that gets on may take for all."""
    return LONGEST_S + memory_bytes / _SLOWEST


def _most_bytes(memory_bytes: int) -> int:
    """A stream's: each page has a few bytes before it, and comes once."""
    return memory_bytes + memory_bytes // 256 + 2 * STATE_BYTES


def _refused(problem: str) -> HypervisorError:
    return HypervisorError(f"QEMU's memory stream {problem}", reason=STREAM_REFUSED)


def _not_whole(problem: str, error: HypervisorError) -> HypervisorError:
    if problem and "ended before its end" in error.message:
        return HypervisorError(f"QEMU could not write the memory: {problem}")
    return error


def _reader(
    source: int,
    memory: str,
    memory_bytes: int,
    domain: str,
    *,
    once: bool = False,
) -> ConfinedReader:
    """Begun. `source` is its own from now on, whatever comes of it."""
    try:
        target = open_plain(memory, os.O_RDWR)
    except OSError as error:
        os.close(source)
        raise _not_written(error) from error
    user = domain_reading.read_user(domain)
    return ConfinedReader(source, target, memory_bytes, user, once=once)


def give_up(machine: Any) -> None:
    """End a writing that a killed driver began: at its end QEMU would stop the machine again.
    TimedOut.
    """
    deadline = time.monotonic() + _GIVE_UP_S
    while _is_under_way(machine):
        if time.monotonic() > deadline:
            raise TimedOut("QEMU does not end writing its memory")
        monitor.ask(machine, "migrate_cancel")
        time.sleep(_POLL_S)


def _is_under_way(machine: Any) -> bool:
    answer = monitor.ask(machine, "query-migrate")
    with monitor.reading("query-migrate"):
        return answer.get("status") in _UNDER_WAY


def describe(machine: Any) -> str:
    """The definition that it can be loaded by."""
    flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
    return str(machine.XMLDesc(flags))


def _captured(text: str, found: Split) -> Captured:
    return Captured(
        state=found.state,
        domain_xml=text,
        stored_bytes=found.stored_bytes,
        machine=domain_reading.read_machine_type(text),
        cpu=domain_reading.read_element(text, "cpu"),
    )


def _not_written(error: OSError) -> StorageError:
    return StorageError(
        f"the memory cannot be written: {error.strerror or error}",
        detail=str(error),
        resolution="free space in the state directory",
    )


def write_meanwhile(machine: Any, *, on: bool) -> None:
    """Whether the machine goes on when QEMU writes its memory next. HypervisorError where that
    cannot be.
    """
    wanted = [{"capability": MEANWHILE, "state": on}]
    monitor.ask(machine, "migrate-set-capabilities", capabilities=wanted)


def hand_over(machine: Any, target: int, *, meanwhile: bool = False) -> None:
    """Give QEMU the descriptor to write to, as fast as it can; ours is closed. `meanwhile`: the
    machine is to go on when QEMU has begun.
    """
    try:
        # Each time: a killed driver may have left it on, and the machine would go on by itself.
        write_meanwhile(machine, on=meanwhile)
        # The default of 128 MiB/s would be the slowest part by far.
        monitor.ask(machine, "migrate-set-parameters", **{"max-bandwidth": _UNLIMITED})
        libvirt_qemu.qemuMonitorCommandWithFiles(
            machine,
            '{"execute":"getfd","arguments":{"fdname":"vmdriver-memory"}}',
            [target],
            0,
        )
    finally:
        os.close(target)


def migrate(
    machine: Any,
    pulse: Pulse,
    longest_s: float = LONGEST_S,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Have it written. See `until_written`."""
    begin(machine)
    return until_written(machine, pulse, longest_s, check)


def begin(machine: Any) -> None:
    """Have it written to what was handed over."""
    monitor.ask(machine, "migrate", uri="fd:vmdriver-memory")


def until_written(
    machine: Any,
    pulse: Pulse,
    longest_s: float,
    check: Callable[[], None],
    poll_s: float = _POLL_S,
) -> str:
    """What went wrong, or "". TimedOut when it does not get on, takes longer than
    `longest_s` all in all, or nobody waits any more. What `check` raises ends it too.
    """
    moved: object = None
    end = time.monotonic() + longest_s
    while True:
        answer = monitor.ask(machine, "query-migrate")
        with monitor.reading("query-migrate"):
            status = answer.get("status", "none")
            if status == "completed":
                return ""
            if status in {"failed", "cancelled"}:
                return str(answer.get("error-desc", status))[:_LONGEST_WORDS]
            now = (status, answer.get("ram", {}).get("transferred"))
        if moved != now:
            moved = now
            pulse.beat()
        try:
            check()
        except HypervisorError:
            give_up(machine)
            raise
        if pulse.given_up or time.monotonic() > min(pulse.at + STALL_S, end):
            give_up(machine)
            raise TimedOut("QEMU does not get on with writing the memory")
        time.sleep(poll_s)
