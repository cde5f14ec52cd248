"""A stopped machine's memory and devices, out of QEMU: its own migration, asked for through
libvirt's monitor passthrough, into a pipe, and cut in two while it comes (confined_reader.py). How
a machine is written that runs meanwhile, see running.py.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any

import libvirt
import libvirt_qemu

from vmdriver.errors import HypervisorError, StorageError, TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.host.plain_file import open_plain
from vmdriver.hypervisor import domain_reading, monitor
from vmdriver.hypervisor.memory.confined_reader import ConfinedReader
from vmdriver.hypervisor.memory.ram_stream import Split
from vmdriver.lifecycle.ports.memory import Captured

_PIPE_BYTES = 1024 * 1024
_POLL_S = 0.004
STALL_S = 8.0
"""Without a byte for that long, whoever takes them is not there any more."""
DEADLINE_S = STALL_S + 1.0
"""The same where QEMU does not even answer."""
LONGEST_S, _SLOWEST = 60.0, 16 * 2**20
"""All of it may take so many seconds, and one for each so many bytes of the machine's memory."""
_GIVE_UP_S = 5.0
_LONGEST_WORDS = 400
UNLIMITED = 2**40
LEAST_DOWNTIME_MS = 1
_UNDER_WAY = {"setup", "active", "device", "pre-switchover", "cancelling"}


def to_memory(
    machine: Any, memory: str, memory_bytes: int, pulse: Pulse, stood: str = ""
) -> Captured:
    """Write it to the empty file `memory`, and what is not RAM to memory. See
    ports.MachineMemory.capture. `stood`: why it stands still for all of it.
    """
    text = describe(machine)
    source, target = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        reading = reader(source, memory, memory_bytes, text)
    except BaseException:
        os.close(target)
        raise
    try:
        hand_over(machine, target)
        problem = migrate(machine, pulse, longest_s(memory_bytes))
        try:
            found = reading.found(STALL_S, lambda: not pulse.given_up)
        except HypervisorError as error:
            # A reader that had nothing to read says less than QEMU.
            raise _not_whole(problem, error) from error
    finally:
        reading.end()
    if problem:
        raise HypervisorError(f"QEMU could not write the memory: {problem}")
    return captured(text, found, stood)


def longest_s(memory_bytes: int) -> float:
    """How long a QEMU that gets on may take for all."""
    return LONGEST_S + memory_bytes / _SLOWEST


def _not_whole(problem: str, error: HypervisorError) -> HypervisorError:
    if problem and "ended before its end" in error.message:
        return HypervisorError(f"QEMU could not write the memory: {problem}")
    return error


def reader(
    source: int, memory: str, memory_bytes: int, domain: str, *, by_pass: bool = False
) -> ConfinedReader:
    """Begun. `source` is its own from now on, whatever comes of it."""
    try:
        target = open_plain(memory, os.O_RDWR)
    except OSError as error:
        os.close(source)
        raise _not_written(error) from error
    user = domain_reading.read_user(domain)
    return ConfinedReader(source, target, memory_bytes, user, by_pass=by_pass)


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
    """Its domain, as it is to be loaded."""
    flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
    return str(machine.XMLDesc(flags))


def captured(text: str, found: Split, stood: str = "") -> Captured:
    """What came of it."""
    return Captured(
        state=found.state,
        domain_xml=text,
        stored_bytes=found.stored_bytes,
        machine=domain_reading.read_machine_type(text),
        cpu=domain_reading.read_element(text, "cpu"),
        stood=stood,
    )


def _not_written(error: OSError) -> StorageError:
    return StorageError(
        f"the memory cannot be written: {error.strerror or error}",
        detail=str(error),
        resolution="free space in the state directory",
    )


def hand_over(
    machine: Any,
    target: int,
    downtime_ms: int = LEAST_DOWNTIME_MS,
    *,
    running: bool = False,
) -> None:
    """Give QEMU the descriptor to write to; ours is closed. `running`: it is written while the
    machine runs, and not to be ended by QEMU.
    """
    try:
        monitor.ask(
            machine,
            "migrate-set-capabilities",
            capabilities=[{"capability": "pause-before-switchover", "state": running}],
        )
        # The default of 128 MiB/s would be the slowest part by far.
        limits = {"max-bandwidth": UNLIMITED, "downtime-limit": downtime_ms}
        monitor.ask(machine, "migrate-set-parameters", **limits)
        libvirt_qemu.qemuMonitorCommandWithFiles(
            machine,
            '{"execute":"getfd","arguments":{"fdname":"vmdriver-memory"}}',
            [target],
            0,
        )
    finally:
        os.close(target)


def migrate(machine: Any, pulse: Pulse, longest_s: float = LONGEST_S) -> str:
    """Have it written. What went wrong, or "". TimedOut when it does not get on, takes longer than
    `longest_s` all in all, or nobody waits any more.
    """
    monitor.ask(machine, "migrate", uri="fd:vmdriver-memory")
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
        if pulse.given_up or time.monotonic() > min(pulse.at + STALL_S, end):
            give_up(machine)
            raise TimedOut("QEMU does not get on with writing the memory")
        time.sleep(_POLL_S)
