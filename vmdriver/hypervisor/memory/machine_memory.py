"""Implements lifecycle.ports.memory.MachineMemory: a machine's RAM to a file and back.

Saving is in capture.py. Loading is libvirt's ordinary restore of a save image that holds only
the devices' state: the RAM is mapped from its file, so that it takes as long for 4 GiB as
for 256 MiB.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import libvirt

from vmdriver.errors import (
    DriverError,
    HypervisorError,
    LoadRefused,
    NotFound,
    StorageError,
)
from vmdriver.host import open_files
from vmdriver.host.lanes import Pulse
from vmdriver.host.side_by_side import beside
from vmdriver.host.threads import Threads
from vmdriver.hypervisor import domain_xml, qemu_process, root_disk
from vmdriver.hypervisor.abilities import kind_of
from vmdriver.hypervisor.connection import START_DEADLINE_S, Connection
from vmdriver.hypervisor.kvm import access as kvm_access
from vmdriver.hypervisor.load_errors import is_checkpoints_fault
from vmdriver.hypervisor.machines import Check, end_at_once, unchecked
from vmdriver.hypervisor.memory import capture, copies, meanwhile
from vmdriver.hypervisor.memory.unprotect import unprotect
from vmdriver.hypervisor.questions.trial import Spared, nothing_spared
from vmdriver.hypervisor.wall import own_folders
from vmdriver.hypervisor.wall.cgroups import NO_CGROUPS, Cgroups
from vmdriver.hypervisor.wall.entrance import Entrance, straight
from vmdriver.hypervisor.wall.sealing import Sealing
from vmdriver.lifecycle.ports.memory import Captured, SavedMachine, Streamed
from vmdriver.model.passage import DIRECT, Passage
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wall import Offer

_log = logging.getLogger(__name__)
_UNPROTECT_S = 5.0
_SAVE_HEADER = struct.Struct("<16s5I56x")
"""libvirt's save image: magic, version, length of XML, was running, compression, offset of a
cookie, 14 unused words (libvirt 9.0, src/qemu/qemu_saveimage.h).
"""


class DomainMemory:
    """Memory of the domains on one connection."""

    def __init__(
        self,
        connection: Connection,
        files: Threads,
        sealing: Sealing,
        passage: Passage = DIRECT,
        check: Check = unchecked,
        cgroups: Cgroups = NO_CGROUPS,
        emulator: Callable[[LaunchPlan, Sequence[str]], Awaitable[str]] | None = None,
        entrance: Entrance = straight,
        spared: Spared = nothing_spared,
    ) -> None:
        """`emulator`: see Machines.emulator; None: the one that a machine had when it was saved."""
        self._emulator = emulator
        self._cgroups = cgroups
        self._connection = connection
        self._check = check
        self._passage = passage
        self._entrance = entrance
        self._spared = spared
        self._sealing = sealing
        self._files = files
        self._version: int | None = None

    async def seals(self) -> bool:
        return self._sealing.is_possible(await self._qemu_version())

    async def offer(self, plan: LaunchPlan | None) -> Offer:
        """A ports.WallSource. Without it no machine is made from memory that others map. Of no plan
        only what can be told without libvirt.
        """
        found = await self.seals() if plan else not self._sealing.problem
        return Offer(("sealed-memory",) if found else ())

    async def _qemu_version(self) -> int:
        if self._version is None:
            self._version = await self._connection.call(
                "version", lambda c: int(c.getVersion()), deadline_s=START_DEADLINE_S
            )
        return self._version

    async def pause(self, domain: str) -> None:
        def suspend(connection: Any) -> None:
            machine = connection.lookupByName(domain)
            if machine.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
                machine.suspend()

        await self._connection.call(f"pause {domain}", suspend, domain)

    async def go_on(self, domain: str) -> None:
        def resume(connection: Any) -> None:
            machine = connection.lookupByName(domain)
            if machine.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                capture.give_up(machine)
                machine.resume()

        try:
            await self._connection.call(f"resume {domain}", resume, domain)
        except NotFound:
            return

    async def capture(self, domain: str, memory: str, memory_mib: int) -> Captured:
        pulse = Pulse()
        return await self._connection.call(
            f"capture {domain}",
            lambda c: capture.to_memory(
                c.lookupByName(domain), memory, memory_mib * 2**20, pulse
            ),
            domain,
            pulse=pulse,
            deadline_s=capture.DEADLINE_S,
        )

    async def stream(self, domain: str, target: str) -> Streamed:
        pulse = Pulse()
        return await self._connection.call(
            f"write out {domain}",
            lambda c: capture.to_stream(c.lookupByName(domain), target, pulse),
            domain,
            pulse=pulse,
            deadline_s=capture.DEADLINE_S,
        )

    async def why_still(self, domain: str) -> str:
        return await self._connection.call(
            f"ask {domain} how its memory can be written",
            lambda c: meanwhile.why_still(c.lookupByName(domain)),
            domain,
        )

    async def begin_stream(self, domain: str, target: str) -> Streamed:
        pulse = Pulse()
        try:
            return await self._connection.call(
                f"begin to write out {domain}",
                lambda c: meanwhile.begin(c.lookupByName(domain), target, pulse),
                domain,
                pulse=pulse,
                deadline_s=capture.DEADLINE_S,
            )
        except DriverError:
            await self._unprotect(domain)
            raise

    async def end_stream(self, domain: str, streamed: Streamed) -> None:
        pulse = Pulse()
        call = self._connection.call(
            f"write out {domain} meanwhile",
            lambda c: meanwhile.end(c.lookupByName(domain), streamed, pulse),
            domain,
            pulse=pulse,
            deadline_s=capture.DEADLINE_S,
        )
        waiting = asyncio.ensure_future(call)
        try:
            await asyncio.shield(waiting)
        except asyncio.CancelledError:
            pulse.given_up = True  # it is ended at once, and not when it is complete
            await self._unprotect(domain)
            await asyncio.wait({waiting})
            if not waiting.cancelled():
                waiting.exception()
            await self._unprotect(domain)
            raise
        except DriverError:
            await self._unprotect(domain)
            raise

    async def _unprotect(self, domain: str) -> None:
        """Past its monitor, which may not answer before."""
        directory = qemu_process.run_directory(self._connection.uri)
        lane, what = f"unprotect {domain}", f"unprotect the memory of {domain}"
        try:
            await self._connection.lanes.run(
                lane,
                what,
                lambda: unprotect(directory, domain),
                deadline_s=_UNPROTECT_S,
            )
        except (OSError, DriverError) as error:
            # A QEMU from 8.1 on does it by itself.
            _log.warning("%s: %s", what, error)

    async def give_up_stream(self, domain: str) -> None:
        await self._unprotect(domain)
        pulse = Pulse()
        try:
            await self._connection.call(
                f"end the writing of {domain}",
                lambda c: meanwhile.give_up_if_it_runs(c.lookupByName(domain), pulse),
                domain,
                pulse=pulse,
                deadline_s=capture.DEADLINE_S,
            )
        except NotFound:
            return
        finally:
            await self._unprotect(domain)  # it may have been about to protect it

    async def split(self, streamed: Streamed, memory: str, memory_mib: int) -> Captured:
        return await self._files.run(
            capture.split, streamed, memory, memory_mib * 2**20
        )

    async def load(
        self, plan: LaunchPlan, mark: str, saved: SavedMachine, scratch: str
    ) -> None:
        described = self._described(plan, mark, saved)
        text = await beside(described, self._check(plan.disk("root")))
        image = Path(scratch)
        if plan.accelerator == "kvm" and plan.user is not None:
            kvm_access.let_in(plan.user.gid)

        def restore(connection: Any) -> None:
            try:
                own_folders.let_through(self._connection.uri, text)
                write_save_image(image, text, saved.state)
                _refuse_running(connection.defineXML(text))
                begin = partial(
                    connection.restoreFlags,
                    *(str(image), None, libvirt.VIR_DOMAIN_SAVE_PAUSED),
                )
                end = partial(end_at_once, connection, plan.domain)
                self._cgroups.begin(plan, begin, end)
                machine = connection.lookupByName(plan.domain)
                own_folders.take_over(self._connection.uri, machine)
            except libvirt.libvirtError as error:
                if is_checkpoints_fault(error):
                    raise LoadRefused(
                        f"load {plan.domain}: {error.get_error_message()}"
                    ) from error
                raise
            except OSError as error:
                raise StorageError(
                    f"the machine's state cannot be written: {error.strerror or error}",
                    detail=str(error),
                    resolution="free space in the state directory",
                ) from error
            finally:
                image.unlink(missing_ok=True)

        around = self._entrance(plan.network, mark)
        async with around, self._connection.place(plan.domain):
            await self._connection.call(
                f"load {plan.domain}",
                restore,
                plan.domain,
                deadline_s=START_DEADLINE_S,
                namespace=plan.network.namespace,
            )

    async def _described(self, plan: LaunchPlan, mark: str, saved: SavedMachine) -> str:
        """The domain to load; its box is ready."""
        memory = saved.memory
        mapping = self._sealing.mapping(
            await self._qemu_version(), self._passage.theirs(memory)
        )
        reads = (memory, *mapping.files)
        unasked = await self._connection.lanes.attend(
            plan.domain,
            "wait for what libvirt may leave out",
            self._spared(kind_of(plan.accelerator)),
        )
        begin = await self._emulator(plan, reads) if self._emulator else ""
        return domain_xml.for_restore(
            saved.domain_xml,
            plan,
            mark,
            memory,
            mapping,
            self._passage,
            begin,
            unasked=unasked,
        )

    async def begin_copies(self, domain: str, targets: Mapping[str, str]) -> None:
        theirs = {role: self._passage.theirs(path) for role, path in targets.items()}
        await self._connection.call(
            f"copy disks of {domain}",
            lambda c: copies.begin(c.lookupByName(domain), theirs),
            domain,
        )

    async def uncopied_bytes(self, domain: str) -> int | None:
        return await self._connection.call(
            f"look at the copies of {domain}",
            lambda c: copies.left(c.lookupByName(domain)),
            domain,
        )

    async def end_copies(self, domain: str, roles: Collection[str]) -> None:
        await self._connection.call(
            f"end the copies of {domain}",
            lambda c: copies.end(c.lookupByName(domain), roles),
            domain,
            deadline_s=copies.DEADLINE_S,
        )

    async def drop_copies(self, domain: str) -> None:
        try:
            await self._connection.call(
                f"drop the copies of {domain}",
                lambda c: copies.drop(c.lookupByName(domain)),
                domain,
                deadline_s=copies.DEADLINE_S,
            )
        except NotFound:
            return

    async def switch_layer(self, domain: str, layer: str) -> None:
        theirs = self._passage.theirs(layer)
        await self._connection.call(
            f"switch layer of {domain}",
            lambda c: root_disk.switch(c.lookupByName(domain), theirs),
            domain,
        )

    async def holds(self, layer: str, below: str) -> bool:
        """The kernel is asked, since a machine that hangs answers nobody; libvirt is not, since it
        may not know yet what QEMU does.
        """
        found = await self._files.run(open_files.open_elsewhere, (layer, below))
        # Where neither is seen, it has ended, who knows when, or we may not look at it.
        return layer in found or (below not in found and Path(layer).exists())


def _refuse_running(machine: Any) -> None:
    if machine.isActive():
        raise HypervisorError(f"domain {machine.name()} is running already")


def write_save_image(path: Path, text: str, state: bytes) -> None:
    """A new file, as libvirt's own `save` makes it: header, domain XML, then QEMU's state."""
    xml = text.encode() + b"\0"
    header = _SAVE_HEADER.pack(b"LibvirtQemudSave", 2, len(xml), 0, 0, 0)
    path.unlink(missing_ok=True)
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(header + xml + state)
