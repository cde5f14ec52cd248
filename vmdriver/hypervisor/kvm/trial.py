"""Tries KVM with a guest, and tells what is KVM's fault from what is not.

A guest that does not come up proves nothing alone: its files may be unreadable, the host busy,
QEMU killed. So a second guest, the same but on software emulation, must come up where the first
one did not. Emulation is many times slower: what leaves it enough time leaves KVM enough.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from vmdriver.errors import HypervisorError
from vmdriver.host.plain_file import read_start
from vmdriver.hypervisor.abilities import Host
from vmdriver.hypervisor.domain_xml import MEMORY_MIB, render_probe
from vmdriver.hypervisor.kvm.outcome import Outcome, undecided
from vmdriver.hypervisor.wall.box import Box
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.paths import BootChoice
from vmdriver.model.passage import Passage
from vmdriver.model.phase import DomainState

_QEMU_ENDED = ("closed the monitor", "exited while connecting to monitor")
_STATUS_BYTES = 65536
_FILE_BYTES = 2**24
_LOOK_S = 0.1
Type = Literal["kvm", "qemu"]


@dataclass(frozen=True)
class Fault:
    """Why a guest is not up. `ended`: it is not running any more, whoever did it; `at_start`: QEMU
    did not even come to run it.
    """

    text: str
    ended: bool = False
    at_start: bool = False


class Hypervisor(Protocol):
    """What of hypervisor.machines.Machines a trial needs."""

    passage: Passage

    async def probe_host(self, kind: Type, name: str, box: Box) -> Host:
        """See Machines."""

    async def start_xml(self, name: str, text: str) -> None:
        """See Machines."""

    async def observe(self, domain: str) -> DomainState:
        """See Machines."""

    async def destroy(self, domain: str) -> None:
        """See Machines."""


@dataclass(frozen=True)
class Guest:
    """A machine that says on its status disk that it has reached user space."""

    machines: Hypervisor
    name: str
    domain_type: Type
    boot: BootChoice
    work: Path
    owner: Ownership

    @property
    def _status(self) -> Path:
        return self.work / f"{self.name}.status"

    @property
    def _console(self) -> Path:
        return self.work / f"{self.name}.console"

    async def start(self) -> Fault | None:
        """Start it; what QEMU said if it ended at once. Other errors of the hypervisor are raised:
        they say nothing about KVM.
        """
        await self.machines.destroy(self.name)
        for path, size in ((self._status, _STATUS_BYTES), (self._console, 0)):
            path.write_bytes(b"\0" * size)
            path.chmod(0o600)
            os.chown(path, self.owner.uid, self.owner.gid)
        theirs = self.machines.passage.theirs
        files = (theirs(self.boot.kernel), theirs(self.boot.initramfs))
        places = (theirs(str(self._status)), theirs(str(self._console)))
        box = Box(files, places, self.domain_type == "kvm", MEMORY_MIB, _FILE_BYTES)
        host = await self.machines.probe_host(self.domain_type, self.name, box)
        text = render_probe(self.name, files, *places, host, self.owner)
        try:
            await self.machines.start_xml(self.name, text)
        except HypervisorError as error:
            if not any(words in error.message for words in _QEMU_ENDED):
                raise
            last = error.message.strip().splitlines()[-1].strip()[:200]
            return Fault(f"QEMU itself ended: {last}", ended=True, at_start=True)
        return None

    def is_up(self) -> bool:
        """Whether it has said so."""
        return read_start(self._status, 64).startswith(b"phase=probed")

    async def runs(self) -> bool:
        """Whether it still may."""
        state = await self.machines.observe(self.name)
        return state in {DomainState.RUNNING, DomainState.PAUSED}

    async def end(self) -> None:
        """Leave nothing of it; also of one that a killed driver has left."""
        await self.machines.destroy(self.name)
        for path in (self._status, self._console):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Trial:
    """One question to KVM."""

    machines: Hypervisor
    instance: str
    work: Path
    owner: Ownership
    deadline_s: float

    def _guest(self, what: str, domain_type: Type, boot: BootChoice) -> Guest:
        name = f"{self.instance}-{what}"
        return Guest(self.machines, name, domain_type, boot, self.work, self.owner)

    def _guests(self, boot: BootChoice) -> tuple[Guest, Guest]:
        return self._guest("probe", "kvm", boot), self._guest("control", "qemu", boot)

    async def clear(self) -> None:
        """Remove what a killed driver's trial has left."""
        for guest in self._guests(BootChoice("", "", "")):
            await guest.end()

    async def ask(self, boot: BootChoice) -> Outcome:
        """Boot a guest on KVM. DriverError and OSError: nobody could be asked."""
        kvm, control = self._guests(boot)
        try:
            fault = await self._fault(kvm)
            if fault is not None and fault.ended:
                # Perhaps somebody else has ended it: once more.
                fault = await self._fault(kvm)
            if fault is None:
                return Outcome(decided=True, works=True)
            return await self._compared(fault, kvm, control)
        finally:
            await kvm.end()
            await control.end()

    async def _fault(self, guest: Guest, late: Guest | None = None) -> Fault | None:
        """Start the guest; why it is not up within the deadline. Not waited for any longer when
        another one that was `late` is up.
        """
        ended = await guest.start()
        if ended is not None:
            return ended
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.deadline_s
        while loop.time() < deadline:
            if guest.is_up() or (late is not None and late.is_up()):
                return None
            if not await guest.runs():
                return None if guest.is_up() else Fault("it ended early", ended=True)
            await asyncio.sleep(_LOOK_S)
        return Fault(f"it did not reach user space within {self.deadline_s:g} s")

    async def _compared(self, fault: Fault, kvm: Guest, control: Guest) -> Outcome:
        """Whose fault it was. A guest on KVM that is only late goes on meanwhile."""
        late = None if fault.ended else kvm
        if fault.at_start:  # it is enough that QEMU does come to run the other one
            control_fault = await control.start()
        else:
            control_fault = await self._fault(control, late)
        if late is not None and late.is_up():
            return Outcome(decided=True, works=True)
        if control_fault is not None:
            return undecided(
                f"of a probe guest on KVM: {fault.text}; and of the same guest on software "
                f"emulation: {control_fault.text}"
            )
        return Outcome(
            decided=True,
            works=False,
            reason=f"of a probe guest on KVM: {fault.text}; on software emulation it went well",
        )
