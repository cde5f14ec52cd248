"""Implements lifecycle.ports.host.Hypervisor with libvirt domains."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import libvirt

from vmdriver.errors import HypervisorError, NotFound, TimedOut, Unavailable
from vmdriver.hypervisor import logs, qemu_process, throttle
from vmdriver.hypervisor.abilities import Abilities, Host, Kind, kind_of
from vmdriver.hypervisor.connection import START_DEADLINE_S, Connection, translated
from vmdriver.hypervisor.domain_reading import METADATA
from vmdriver.hypervisor.domain_state import domain_state
from vmdriver.hypervisor.domain_xml import render
from vmdriver.hypervisor.kvm import access as kvm_access
from vmdriver.hypervisor.marks import mark_of
from vmdriver.hypervisor.questions.trial import Spared, nothing_spared
from vmdriver.hypervisor.wall import own_folders
from vmdriver.hypervisor.wall.box import Box, in_box
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.hypervisor.wall.cgroups import NO_CGROUPS, Cgroups
from vmdriver.hypervisor.wall.entrance import Entrance, straight
from vmdriver.lifecycle.ports.host import Found
from vmdriver.model.checkpoint import Versions
from vmdriver.model.ids import parse_mark
from vmdriver.model.passage import DIRECT, Passage
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import Accelerator, Disk, LaunchPlan, Processor

_log = logging.getLogger(__name__)
_TERMINATE_S = 4.0
"""For QEMU to write out what it holds and end by itself."""
_DESTROY_S = 12.0
_QUIET_S = 5.0
_BOX_S = 5.0
_LOGS_S = 15.0
_HELD_S = 5.0
_ROUNDS = 3
_UNDEFINE = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
)


Check = Callable[[Disk], Awaitable[None]]
"""Sees that what a root disk consists of may be opened, before anybody is told to. StorageError."""


async def unchecked(_disk: Disk) -> None:
    """For disks that no machine has written to."""


class Machines:
    """All domains of one driver instance on one connection."""

    def __init__(
        self,
        connection: Connection,
        instance: str,
        abilities: Abilities,
        passage: Passage = DIRECT,
        check: Check = unchecked,
        cgroups: Cgroups = NO_CGROUPS,
        boxes: Boxes | None = None,
        entrance: Entrance = straight,
        spared: Spared = nothing_spared,
    ) -> None:
        self._abilities = abilities
        self._spared = spared
        self.passage = passage
        self._entrance = entrance
        self._cgroups = cgroups
        self._check = check
        self._boxes = boxes
        self._connection = connection
        self._instance = instance

    def on_change(self, hint: Callable[[str], None]) -> None:
        self._connection.on_domain_event(hint)

    # --- the hypervisor's own facts

    async def host(self, kind: Kind) -> Host:
        """What domains of that type are rendered for."""
        host = await self._abilities.host(kind)
        return replace(host, unasked=await self._spared(kind))

    async def releases(self) -> dict[str, str]:
        """See Abilities."""
        return await self._abilities.releases()

    async def versions(self, accelerator: Accelerator) -> Versions:
        return await self._abilities.versions(accelerator)

    async def processor(self, accelerator: Accelerator) -> Processor:
        return await self._abilities.processor(accelerator)

    # --- ports.Hypervisor

    async def start(self, plan: LaunchPlan, mark: str) -> None:
        """Define and start. A domain that is already running under this name is an
        error: two machines, one disk.
        """
        await self._check(plan.disk("root"))
        kind = kind_of(plan.accelerator)
        if kind == "kvm" and plan.user is not None:
            kvm_access.let_in(plan.user.gid)
        # Like the start itself it may be given up.
        host = await self._connection.lanes.attend(
            plan.domain, "wait for the hypervisor's capabilities", self.host(kind)
        )
        host = replace(host, emulator=await self.emulator(plan))
        text = render(plan, host, mark, self.passage)
        if not plan.network.moved:
            await self.start_xml(plan.domain, text, plan)
            return
        async with self._entrance(plan.network, mark):
            await self.start_xml(plan.domain, text, plan)
        await self._connection.call(
            f"let {plan.domain} run",
            lambda connection: connection.lookupByName(plan.domain).resume(),
            plan.domain,
        )

    async def emulator(self, plan: LaunchPlan, more: Sequence[str] = ()) -> str:
        """The program that libvirt is to take for the plan's QEMU; the box that it is begun in is
        ready. `more`: files that it reads besides those of its plan. StorageError.
        """
        host = await self._abilities.host(kind_of(plan.accelerator))
        plain, boxes = host.emulator, self._boxes
        if boxes is None or not in_box(plan.wall):
            return plain
        return await self._in_lane(
            plan.domain, lambda: boxes.make_for(plan, plain, more)
        )

    async def probe_host(self, kind: Kind, name: str, box: Box) -> Host:
        """What a guest of that name that is no sandbox is rendered for; its box is ready."""
        host, boxes = await self.host(kind), self._boxes
        if boxes is None or not in_box(boxes.parts):
            return host
        box = replace(box, parts=boxes.parts)
        made = await self._in_lane(name, lambda: boxes.make(name, host.emulator, box))
        return replace(host, emulator=made)

    async def _in_lane(self, domain: str, make: Callable[[], str]) -> str:
        what = f"make a box for {domain}"
        return await self._connection.lanes.run(domain, what, make, deadline_s=_BOX_S)

    async def start_xml(
        self, name: str, text: str, plan: LaunchPlan | None = None
    ) -> None:
        """Define and start a domain. No `plan`: it is no sandbox (the accelerator probe). One whose
        tap is still to be moved is left paused.
        """
        moved = plan is not None and plan.network.moved

        def start(connection: Any) -> None:
            begin = partial(self._begin, connection, text)
            if plan is None:
                begin()
            else:
                end = partial(end_at_once, connection, name)
                self._cgroups.begin(plan, begin, end)
            if connection.getType() != "TEST" and not moved:
                connection.lookupByName(name).resume()

        async with self._connection.place(name):
            await self._connection.call(
                f"start {name}",
                start,
                name,
                deadline_s=START_DEADLINE_S,
                namespace=plan.network.namespace if plan is not None else None,
            )

    def _begin(self, connection: Any, text: str) -> None:
        """Paused: it does nothing before the wall around it is whole."""
        own_folders.let_through(self._connection.uri, text)
        machine = connection.defineXML(text)
        if machine.isActive():
            raise HypervisorError(f"domain {machine.name()} is running already")
        try:
            if connection.getType() == "TEST":
                machine.create()
                return
            machine.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        except libvirt.libvirtError:
            _tolerate(lambda: _undefine(machine), libvirt.VIR_ERR_NO_DOMAIN)
            raise
        own_folders.take_over(self._connection.uri, machine)

    async def observe(self, domain: str) -> DomainState:
        def look(connection: Any) -> DomainState:
            try:
                state, reason = connection.lookupByName(domain).state()
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return DomainState.ABSENT
                raise
            return domain_state(state, reason)

        return await self._connection.call(
            f"look at {domain}", look, domain, urgent=True
        )

    async def destroy(self, domain: str) -> None:
        def end(connection: Any) -> None:
            if self._boxes is not None:
                with suppress(OSError):  # told below: it keeps nobody's machine running
                    self._boxes.remove(domain)
            machine = connection.lookupByName(domain)
            if machine.isActive():
                _tolerate(
                    machine.destroy,
                    libvirt.VIR_ERR_OPERATION_INVALID,
                    libvirt.VIR_ERR_NO_DOMAIN,
                )
            _tolerate(lambda: _undefine(machine), libvirt.VIR_ERR_NO_DOMAIN)

        # What was given up may go on for a moment, and even begin the machine only now.
        for _ in range(_ROUNDS):
            others = self._connection.lanes.is_busy(domain)
            await self._end(domain, end)
            if not others:
                await self._remove_rest(domain)
                return
            if not await self._connection.lanes.quiet(domain, _QUIET_S):
                raise TimedOut(f"domain {domain}: earlier calls on it have not ended")
        raise TimedOut(f"domain {domain}: there are always others who use it")

    async def _remove_rest(self, domain: str) -> None:
        def remove() -> None:
            self._cgroups.remove(domain)
            if self._boxes is not None:
                self._boxes.remove_or_tell(domain)

        await self._connection.lanes.run(
            f"rest of {domain}",
            f"remove what is left of {domain}",
            remove,
            deadline_s=_DESTROY_S,
        )

    async def _end(self, domain: str, end: Callable[[Any], None]) -> None:
        """libvirt sends SIGTERM, and SIGKILL after 10 s, in which it holds the domain's lock:
        whoever lists all domains waits with it. So a QEMU that does not react is killed sooner.
        """
        work = asyncio.ensure_future(
            self._connection.call(
                f"destroy {domain}", end, domain, urgent=True, deadline_s=_DESTROY_S
            )
        )
        try:
            await asyncio.wait({work}, timeout=_TERMINATE_S)
            if not work.done() or _says_nothing(work):
                directory = qemu_process.run_directory(self._connection.uri)
                await self._connection.lanes.run(
                    f"kill {domain}",
                    f"kill QEMU of {domain}",
                    lambda: qemu_process.kill(directory, domain),
                    deadline_s=_DESTROY_S,
                )
            await work
        except NotFound:
            return
        finally:
            if not work.done():
                await asyncio.wait({work})

    def abandon(self, domain: str) -> None:
        self._connection.lanes.abandon(domain)

    async def reassign(self, domain: str, mark: str) -> None:
        text = f"<sandbox mark='{mark}'/>"
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        await self._connection.call(
            f"mark {domain}",
            lambda connection: connection.lookupByName(domain).setMetadata(
                libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, "vmdriver", METADATA, flags
            ),
            domain,
        )

    async def limit(self, plan: LaunchPlan) -> None:
        def set_limits(connection: Any) -> None:
            throttle.apply(connection.lookupByName(plan.domain), plan)
            if "cgroup" in plan.wall:
                self._cgroups.make(plan)

        await self._connection.call(f"limit {plan.domain}", set_limits, plan.domain)

    async def held_mib(self, domain: str) -> int | None:
        directory = qemu_process.run_directory(self._connection.uri)
        return await self._connection.lanes.run(
            f"memory of {domain}",
            f"look at what {domain} holds",
            lambda: qemu_process.held_mib(directory, domain),
            deadline_s=_HELD_S,
        )

    async def bound_logs(self) -> None:
        uri, what = self._connection.uri, "bound QEMUs' logs"
        await self._connection.lanes.run(
            "logs", what, lambda: logs.bound(uri), deadline_s=_LOGS_S
        )

    async def marked(self) -> list[Found]:
        def search(connection: Any) -> list[Found]:
            found = []
            for machine in connection.listAllDomains():
                if not machine.name().startswith(self._instance):
                    continue
                with translated("read a domain"):
                    sandbox = parse_mark(mark_of(machine), self._instance)
                if sandbox is not None:
                    found.append(Found("domain", machine.name(), sandbox))
            return found

        return await self._connection.call("list domains", search)


def _says_nothing(work: asyncio.Future[None]) -> bool:
    """libvirt is not there, or has so much unanswered that it is not even asked: QEMU can be
    ended without it. What it says of that follows when it answers.
    """
    return isinstance(work.exception(), TimedOut | Unavailable)


def end_at_once(connection: Any, name: str) -> None:
    """What was begun and is not to be. libvirtError."""
    _tolerate(
        lambda: connection.lookupByName(name).destroy(),
        libvirt.VIR_ERR_NO_DOMAIN,
        libvirt.VIR_ERR_OPERATION_INVALID,  # it has ended by itself
    )


def _undefine(machine: Any) -> None:
    try:
        machine.undefineFlags(_UNDEFINE)
    except libvirt.libvirtError as error:
        # The test driver knows no flags.
        if error.get_error_code() not in {
            libvirt.VIR_ERR_NO_SUPPORT,
            libvirt.VIR_ERR_INVALID_ARG,
        }:
            raise
        machine.undefine()


def _tolerate(call: Callable[[], object], *codes: int) -> None:
    try:
        call()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in codes:
            raise
