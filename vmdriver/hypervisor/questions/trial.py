"""Finds out whether libvirt's questions about a machine's CPU may be left out: by beginning a
machine with them and without, and comparing what it says of itself.

It is paused from its begin to its end, has no disk, and says all there is to say after half a
second. What keeps the ordinary one from being begun is no verdict on the other way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import libvirt

from vmdriver.errors import DriverError, HypervisorError
from vmdriver.host import facts
from vmdriver.hypervisor import monitor
from vmdriver.hypervisor.abilities import Abilities, Host, Kind
from vmdriver.hypervisor.connection import START_DEADLINE_S, Connection
from vmdriver.hypervisor.domain_xml import render_still
from vmdriver.hypervisor.kvm import access as kvm_access
from vmdriver.hypervisor.questions import verdict as verdicts
from vmdriver.hypervisor.questions.verdict import Said, Verdict
from vmdriver.hypervisor.wall.box import Box, in_box
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.lifecycle.ports.host import Ownership

_log = logging.getLogger(__name__)
_WAIT_S = 20.0
"""A start waits so long for the verdict; then it is one with questions."""
_BOX_S = 5.0
_MEMORY_MIB = 256
_FILE_BYTES = 2**24
_X86 = "x86_64"

Spared = Callable[[Kind], Awaitable[bool]]
"""Whether domains of that type are begun without the questions."""


async def nothing_spared(_kind: Kind) -> bool:
    """libvirt's ordinary way."""
    return False


@dataclass(eq=False, kw_only=True)
class QuestionsTrial:
    """For one connection. `name`: of the trial's machine, `owner`: whom it runs as; `results`:
    where verdicts are kept. `boxes`: None for machines without a box.
    """

    connection: Connection
    abilities: Abilities
    boxes: Boxes | None
    name: str
    owner: Ownership
    results: Path
    again_s: float = 600.0
    """After a try that decided nothing."""
    _tasks: dict[Kind, asyncio.Task[Verdict | None]] = field(
        default_factory=dict, init=False
    )
    _at: dict[Kind, float] = field(default_factory=dict, init=False)

    async def spared(self, kind: Kind) -> bool:
        """Tried at the first question. False too as long as it cannot be told."""
        task = self._tasks.get(kind)
        if task is None or self._is_stale(kind, task):
            task = asyncio.create_task(self._find_out(kind), name=f"questions {kind}")
            self._tasks[kind] = task
            self._at[kind] = asyncio.get_running_loop().time()
        await asyncio.wait({task}, timeout=_WAIT_S)
        if not task.done() or task.cancelled() or task.exception() is not None:
            return False
        found = task.result()
        return found is not None and found.spared

    def _is_stale(self, kind: Kind, task: asyncio.Task[Verdict | None]) -> bool:
        if not task.done():
            return False
        if not task.cancelled() and task.exception() is None and task.result():
            return False
        return asyncio.get_running_loop().time() > self._at[kind] + self.again_s

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks.values():
            if not task.done():
                task.cancel()
                await asyncio.wait({task})

    async def _clear(self) -> None:
        """End what a killed driver's trial has left."""

        def end(connection: Any) -> None:
            _end(connection, self.name)

        await self.connection.call(f"end {self.name}", end, self.name)

    async def _find_out(self, kind: Kind) -> Verdict | None:
        """None: nothing was decided."""
        try:
            host = await self.abilities.host(kind)
            if host.domain_type == "test":
                return Verdict(spared=False, reason="it has no CPU", about="")
            await self._clear()
            about = await self._about(host)
            kept = verdicts.load(self.results).get(kind)
            if kept is None or kept.about != about:
                spared, reason = await self._try(host)
                kept = Verdict(spared=spared, reason=reason, about=about)
                with contextlib.suppress(OSError):  # on a full disk it is tried again
                    verdicts.store(self.results, kind, kept)
        except (DriverError, OSError) as error:
            _log.warning(
                "libvirt's way to begin machines could not be tried: %s", error
            )
            return None
        if not kept.spared:
            text = "libvirt asks for each feature of a CPU at every start: %s"
            _log.warning(text, kept.reason)
        return kept

    async def _about(self, host: Host) -> str:
        """Whatever of it changes, it is tried again."""
        found = await self.abilities.releases()
        words = [
            f"libvirt {found['libvirt']}",
            f"QEMU {found['hypervisor']}",
            facts.file_identity(host.emulator),
            host.machine,
        ]
        if host.domain_type == "kvm":
            words += [facts.kernel_build(), facts.processor()]
        return "; ".join(words)

    async def _try(self, host: Host) -> tuple[bool, str]:
        """Whether the questions may be left out; else why not. DriverError: nobody can tell."""
        if host.domain_type == "kvm":
            kvm_access.let_in(self.owner.gid)
        try:
            host = replace(host, emulator=await self._emulator(host), unasked=True)
            asked = await self._said(host, asked=True)
            try:
                unasked = await self._said(host, asked=False)
            except HypervisorError:
                # Perhaps somebody has ended it: once more, and the ordinary one as well.
                asked = await self._said(host, asked=True)
                try:
                    unasked = await self._said(host, asked=False)
                except HypervisorError as error:
                    return False, error.message
        finally:
            if self.boxes is not None:
                with contextlib.suppress(OSError):
                    self.boxes.remove(self.name)
        found = verdicts.difference(asked, unasked)
        return not found, found

    async def _emulator(self, host: Host) -> str:
        boxes = self.boxes
        if boxes is None or not in_box(boxes.parts):
            return host.emulator
        kvm = host.domain_type == "kvm"
        box = Box((), (), kvm, _MEMORY_MIB, _FILE_BYTES, parts=boxes.parts)
        return await self.connection.lanes.run(
            self.name,
            f"make a box for {self.name}",
            lambda: boxes.make(self.name, host.emulator, box),
            deadline_s=_BOX_S,
        )

    async def _said(self, host: Host, *, asked: bool) -> Said:
        one = str(uuid.uuid5(uuid.NAMESPACE_OID, self.name))
        text = render_still(self.name, one, host, self.owner, asked=asked)

        def look(connection: Any) -> Said:
            _end(connection, self.name)
            machine = connection.createXML(text, libvirt.VIR_DOMAIN_START_PAUSED)
            try:
                return Said(machine.XMLDesc(), _words(machine, host.architecture))
            finally:
                _end(connection, self.name)

        how = "with" if asked else "without"
        async with self.connection.place(self.name):
            return await self.connection.call(
                f"begin {self.name} {how} questions",
                look,
                self.name,
                deadline_s=START_DEADLINE_S,
            )


def _words(machine: Any, architecture: str) -> dict[str, int]:
    """QEMU's own word for what its CPU can do (its qapi, X86CPUFeatureWordInfo)."""
    if architecture != _X86:
        return {}
    cpus = monitor.ask(machine, "query-cpus-fast")
    with monitor.reading("query-cpus-fast"):
        path = cpus[0]["qom-path"]
    words = monitor.ask(machine, "qom-get", path=path, property="feature-words")
    with monitor.reading("feature-words"):
        return {
            f"{word['cpuid-input-eax']:x}.{word.get('cpuid-input-ecx', 0):x}:"
            f"{word['cpuid-register']}": word["features"]
            for word in words
        }


def _end(connection: Any, name: str) -> None:
    try:
        connection.lookupByName(name).destroy()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in {
            libvirt.VIR_ERR_NO_DOMAIN,
            libvirt.VIR_ERR_OPERATION_INVALID,  # it has ended by itself
        }:
            raise
