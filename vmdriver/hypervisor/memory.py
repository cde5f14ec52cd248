"""Implements lifecycle.ports.MachineMemory: a machine's RAM to a file and back.

Saving is QEMU's own migration of a stopped machine into a pipe, asked for through libvirt's
monitor passthrough; ram_stream.py cuts the stream in two while it comes. Loading is
libvirt's ordinary restore of a save image that holds only the devices' state: the RAM is
mapped from its file, so that it takes as long for 4 GiB as for 256 MiB.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from vmdriver.errors import HypervisorError, NotFound, StorageError
from vmdriver.hypervisor import domain_xml, guest_channel, ram_stream
from vmdriver.hypervisor.connection import Connection
from vmdriver.lifecycle.memory_ports import Captured, SavedMachine
from vmdriver.model.plan import LaunchPlan

_log = logging.getLogger(__name__)
_PIPE_BYTES = 1024 * 1024
_POLL_S = 0.004
_UNLIMITED = 2**40
_RUNNING_OR_PAUSED = {libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED}
_SAVE_HEADER = struct.Struct("<16s5I56x")
"""libvirt's save image: magic, version, length of XML, was running, compression, offset of a
cookie, 14 unused words (libvirt 9.0, src/qemu/qemu_saveimage.h).
"""


class DomainMemory:
    """Memory of the domains on one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def pause(self, domain: str) -> None:
        """See ports.MachineMemory."""

        def suspend(connection: Any) -> None:
            machine = connection.lookupByName(domain)
            if machine.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
                machine.suspend()

        await self._connection.call(f"pause {domain}", suspend)

    async def go_on(self, domain: str) -> None:
        """See ports.MachineMemory."""

        def resume(connection: Any) -> None:
            machine = connection.lookupByName(domain)
            if machine.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                machine.resume()

        try:
            await self._connection.call(f"resume {domain}", resume)
        except NotFound:
            return

    async def ask(
        self, domain: str, verb: str, fields: Mapping[str, str], timeout_s: float
    ) -> dict[str, str]:
        """See ports.MachineMemory."""
        path = await self._connection.call(
            f"channel of {domain}",
            lambda c: domain_xml.read_channel(c.lookupByName(domain).XMLDesc()),
        )
        if not path:
            raise HypervisorError(f"domain {domain} has no channel to its guest")
        begun = time.monotonic()
        answer = await guest_channel.ask(path, verb, fields, timeout_s)
        _log.debug("outside: guest %s took %.4f s", verb, time.monotonic() - begun)
        return answer

    async def capture(self, domain: str, memory: str, memory_mib: int) -> Captured:
        """See ports.MachineMemory."""
        return await self._connection.call(
            f"capture {domain}",
            lambda c: _capture(c.lookupByName(domain), memory, memory_mib * 2**20),
        )

    async def load(
        self, plan: LaunchPlan, mark: str, saved: SavedMachine, scratch: str
    ) -> None:
        """See ports.MachineMemory."""
        text = domain_xml.for_restore(saved.domain_xml, plan, mark, saved.memory)
        image = Path(scratch)

        def restore(connection: Any) -> None:
            _write_save_image(image, text, saved.state)
            try:
                _refuse_running(connection.defineXML(text))
                connection.restoreFlags(
                    str(image), None, libvirt.VIR_DOMAIN_SAVE_PAUSED
                )
            finally:
                image.unlink(missing_ok=True)

        await self._connection.call(f"load {plan.domain}", restore)

    async def switch_layer(self, domain: str, layer: str) -> None:
        """See ports.MachineMemory."""
        text = (
            "<domainsnapshot><disks>"
            "<disk name='vda' snapshot='external' type='file'><driver type='qcow2'/>"
            f"<source file={_quoted(layer)}/></disk>"
            "<disk name='vdb' snapshot='no'/><disk name='vdc' snapshot='no'/>"
            "<disk name='vdd' snapshot='no'/></disks></domainsnapshot>"
        )
        flags = (
            libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
            | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
        )
        await self._connection.call(
            f"switch layer of {domain}",
            lambda c: c.lookupByName(domain).snapshotCreateXML(text, flags),
        )

    async def root_layer(self, domain: str) -> str:
        """See ports.MachineMemory."""

        def look(connection: Any) -> str:
            machine = connection.lookupByName(domain)
            if machine.state()[0] not in _RUNNING_OR_PAUSED:
                return ""
            return domain_xml.read_root_layer(machine.XMLDesc())

        try:
            return await self._connection.call(f"root layer of {domain}", look)
        except NotFound:
            return ""


def _quoted(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("'", "&apos;")
    return f"'{escaped}'"


def _refuse_running(machine: Any) -> None:
    if machine.isActive():
        raise HypervisorError(f"domain {machine.name()} is running already")


def _monitor(machine: Any, command: str, **arguments: Any) -> Any:
    text = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(machine, text, 0))
    if "error" in answer:
        raise HypervisorError(
            f"QEMU refused {command}: {answer['error'].get('desc', '')}"
        )
    return answer["return"]


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
            target = os.open(self._memory, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self.found = ram_stream.split(self._source, target, self._memory_bytes)
            finally:
                os.close(target)
        except Exception as error:  # noqa: BLE001 - handed over to the caller
            self.error = error
        finally:
            os.close(self._source)


def _capture(machine: Any, memory: str, memory_bytes: int) -> Captured:
    flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_MIGRATABLE
    text = machine.XMLDesc(flags)
    source, target = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(target, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    reader = _Reader(source, memory, memory_bytes)
    try:
        try:
            # The default of 128 MiB/s would be the slowest part by far.
            _monitor(machine, "migrate-set-parameters", **{"max-bandwidth": _UNLIMITED})
            libvirt_qemu.qemuMonitorCommandWithFiles(
                machine,
                '{"execute":"getfd","arguments":{"fdname":"vmdriver-memory"}}',
                [target],
                0,
            )
        finally:
            os.close(target)
        reader.start()
        _monitor(machine, "migrate", uri="fd:vmdriver-memory")
        problem = _wait_for_migration(machine)
    except BaseException:
        if not reader.ident:
            os.close(source)
        raise
    reader.join()
    if isinstance(reader.error, OSError):
        raise StorageError(
            f"the memory cannot be written: {reader.error.strerror}",
            detail=str(reader.error),
            resolution="free space in the state directory",
        ) from reader.error
    if reader.error is not None:
        raise reader.error
    if problem or reader.found is None:
        raise HypervisorError(f"QEMU could not write the memory: {problem}")
    found = reader.found
    return Captured(
        state=found.state,
        domain_xml=text,
        stored_bytes=found.stored_bytes,
        machine=domain_xml.read_machine_type(text),
        cpu=domain_xml.read_element(text, "cpu"),
    )


def _wait_for_migration(machine: Any) -> str:
    while True:
        answer = _monitor(machine, "query-migrate")
        status = answer.get("status", "none")
        if status == "completed":
            return ""
        if status in {"failed", "cancelled"}:
            return str(answer.get("error-desc", status))
        time.sleep(_POLL_S)


def _write_save_image(path: Path, text: str, state: bytes) -> None:
    xml = text.encode() + b"\0"
    header = _SAVE_HEADER.pack(b"LibvirtQemudSave", 2, len(xml), 0, 0, 0)
    path.unlink(missing_ok=True)
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(header + xml + state)
