"""A hypervisor as the probe of accelerators sees it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vmdriver.errors import HypervisorError, Unavailable
from vmdriver.hypervisor.abilities import Host
from vmdriver.hypervisor.wall.box import Box
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.passage import Passage
from vmdriver.model.phase import DomainState

OWNER = Ownership(os.getuid(), os.getgid())


class FakeMachines:
    """A hypervisor whose guests boot, hang, end or do not start, by the type of the domain."""

    passage = Passage()

    def __init__(self, work: Path, kvm: str, tcg: str = "boots") -> None:
        self.work, self.behaviour = work, {"kvm": kvm, "qemu": tcg}
        self.running: dict[str, str] = {}
        self.starts: list[str] = []
        self.version = "7.2.0"
        self.late: Callable[[], None] = lambda: None

    async def releases(self) -> dict[str, str]:
        return {"hypervisor": self.version, "libvirt": "9.0.0"}

    async def host(self, kind: Literal["kvm", "qemu"]) -> Host:
        return await self.probe_host(kind, "", Box())

    async def probe_host(
        self, kind: Literal["kvm", "qemu"], name: str, box: Box
    ) -> Host:
        return Host(kind, "x86_64", "pc-q35-7.2", "/usr/bin/qemu", OWNER)

    async def start_xml(self, name: str, text: str) -> None:
        kind = "kvm" if 'type="kvm"' in text else "qemu"
        self.starts.append(kind)
        how = self.behaviour[kind]
        if how == "ends once" and self.starts.count(kind) == 2:
            how = "boots"
        if how == "QEMU ends":
            raise HypervisorError(
                "start: qemu unexpectedly closed the monitor: failed to set MSR"
            )
        if how == "libvirt fails":
            raise Unavailable("libvirt is away")
        if how == "no such file":
            raise HypervisorError("start: Cannot access storage file")
        if not how.startswith("ends"):
            self.running[name] = kind
        if how == "boots":
            self.say(name)
        if kind == "qemu":
            self.late()

    def say(self, name: str) -> None:
        (self.work / f"{name}.status").write_bytes(b"phase=probed\n")

    async def observe(self, name: str) -> DomainState:
        return DomainState.RUNNING if name in self.running else DomainState.OFF

    async def destroy(self, name: str) -> None:
        self.running.pop(name, None)
