"""A stopped machine's memory and devices, out of QEMU: its own migration, asked for through
libvirt's monitor passthrough.

Into a pipe, cut in two by ram_stream.py while it comes: the shortest way to a checkpoint, for a
machine that ends anyway. Or into a file that is cut afterwards: the machine can go on as
soon as QEMU has written it, at the price of twice the disk space for a moment.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from vmdriver.errors import HypervisorError, StorageError, TimedOut
from vmdriver.host.lanes import Pulse
from vmdriver.host.plain_file import open_plain
from vmdriver.hypervisor import domain_xml, monitor, ram_stream
from vmdriver.lifecycle.ports.memory import Captured, Streamed

_PIPE_BYTES = 1024 * 1024
_POLL_S = 0.004
_STALL_S = 8.0
"""Without a byte for that long, whoever takes them is not there any more."""
DEADLINE_S = _STALL_S + 1.0
"""The same where QEMU does not even answer."""
_GIVE_UP_S = 5.0
_UNLIMITED = 2**40
_UNDER_WAY = {"setup", "active", "device", "pre-switchover", "cancelling"}
_NO_SPACE_BYTES = 16 * 2**20
"""With less than this free, it was space that a failing QEMU lacked: it does not say."""


def to_memory(machine: Any, memory: str, memory_bytes: int, pulse: Pulse) -> Captured:
    """Write it to the empty file `memory`, and what is not RAM to memory. See
    ports.MachineMemory.capture.
    """
    text = _describe(machine)
    source, target = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    reader = _Reader(source, memory, memory_bytes)
    try:
        _hand_over(machine, target)
        reader.start()
        problem = _migrate(machine, pulse)
    except BaseException:
        if not reader.ident:
            os.close(source)
        raise
    reader.join()
    if isinstance(reader.error, OSError):
        raise _not_written(reader.error) from reader.error
    if reader.error is not None:
        raise reader.error
    if problem or reader.found is None:
        raise HypervisorError(f"QEMU could not write the memory: {problem}")
    return _captured(text, reader.found)


def to_stream(machine: Any, path: str, pulse: Pulse) -> Streamed:
    """Write it to a new file, as it comes. See ports.MachineMemory.stream."""
    text = _describe(machine)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    _hand_over(machine, os.open(path, flags, 0o600))
    problem = _migrate(machine, pulse)
    if problem:
        if shutil.disk_usage(Path(path).parent).free < _NO_SPACE_BYTES:
            raise StorageError(
                "the memory cannot be written: no space left",
                detail=problem,
                resolution="free space in the state directory",
            )
        raise HypervisorError(f"QEMU could not write the memory: {problem}")
    return Streamed(path, text)


def split(streamed: Streamed, memory: str, memory_bytes: int) -> Captured:
    """Cut it in two. The file that it was in is gone afterwards."""
    source = open_plain(streamed.path)
    try:
        Path(streamed.path).unlink()
        found = _split_into(source, memory, memory_bytes)
    except OSError as error:
        raise _not_written(error) from error
    finally:
        os.close(source)
    return _captured(streamed.domain_xml, found)


def give_up(machine: Any) -> None:
    """End a writing that a killed driver began: at its end QEMU would stop the machine again.
    TimedOut.
    """
    deadline = time.monotonic() + _GIVE_UP_S
    while monitor.ask(machine, "query-migrate").get("status") in _UNDER_WAY:
        if time.monotonic() > deadline:
            raise TimedOut("QEMU does not end writing its memory")
        monitor.ask(machine, "migrate_cancel")
        time.sleep(_POLL_S)


def _describe(machine: Any) -> str:
    flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
    return str(machine.XMLDesc(flags))


def _captured(text: str, found: ram_stream.Split) -> Captured:
    return Captured(
        state=found.state,
        domain_xml=text,
        stored_bytes=found.stored_bytes,
        machine=domain_xml.read_machine_type(text),
        cpu=domain_xml.read_element(text, "cpu"),
    )


def _not_written(error: OSError) -> StorageError:
    return StorageError(
        f"the memory cannot be written: {error.strerror or error}",
        detail=str(error),
        resolution="free space in the state directory",
    )


def _split_into(source: int, memory: str, memory_bytes: int) -> ram_stream.Split:
    target = open_plain(memory, os.O_RDWR)
    try:
        return ram_stream.split(source, target, memory_bytes)
    finally:
        os.close(target)


class _Reader(threading.Thread):
    """Takes the stream from the pipe while QEMU writes it."""

    def __init__(self, source: int, memory: str, memory_bytes: int) -> None:
        super().__init__(name="vmdriver-capture", daemon=True)
        self._source, self._memory, self._memory_bytes = source, memory, memory_bytes
        self.found: ram_stream.Split | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Ends by itself when the stream does; closing its end makes QEMU end too."""
        try:
            self.found = _split_into(self._source, self._memory, self._memory_bytes)
        except Exception as error:  # noqa: BLE001 - handed over to the caller
            self.error = error
        finally:
            os.close(self._source)


def _hand_over(machine: Any, target: int) -> None:
    """Give QEMU the descriptor to write to; ours is closed."""
    try:
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


def _migrate(machine: Any, pulse: Pulse) -> str:
    """Have it written. What went wrong, or "". TimedOut when it does not get on, or nobody waits
    any more.
    """
    monitor.ask(machine, "migrate", uri="fd:vmdriver-memory")
    moved: object = None
    while True:
        answer = monitor.ask(machine, "query-migrate")
        status = answer.get("status", "none")
        if status == "completed":
            return ""
        if status in {"failed", "cancelled"}:
            return str(answer.get("error-desc", status))
        if moved != (moved := (status, answer.get("ram", {}).get("transferred"))):
            pulse.beat()
        if pulse.given_up or time.monotonic() > pulse.at + _STALL_S:
            give_up(machine)
            raise TimedOut("QEMU does not get on with writing the memory")
        time.sleep(_POLL_S)
