"""What libvirt and QEMU say of themselves; asked once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from xml.etree import ElementTree as Xml

from vmdriver.errors import HypervisorError
from vmdriver.host import facts
from vmdriver.hypervisor.connection import START_DEADLINE_S, Connection
from vmdriver.hypervisor.questions import processor
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.model.checkpoint import Versions
from vmdriver.model.plan import Accelerator, Processor

_log = logging.getLogger(__name__)
T = TypeVar("T")
Kind = Literal["kvm", "qemu"]
"""A domain's type."""


def kind_of(accelerator: Accelerator) -> Kind:
    """The type of its domains."""
    return "kvm" if accelerator == "kvm" else "qemu"


@dataclass(frozen=True)
class Host:
    """What a domain's XML needs to know about the hypervisor."""

    domain_type: Literal["kvm", "qemu", "test"]
    architecture: str
    machine: str
    """Versioned, such as pc-q35-7.2."""
    emulator: str
    owner: Ownership
    """As whom a machine without a user of its own runs."""
    unasked: bool = False
    """libvirt begins machines without asking for each feature of their CPU."""


class Abilities:
    """Of the hypervisor on one connection. `owner`: see Host."""

    def __init__(self, connection: Connection, owner: Ownership) -> None:
        self._connection = connection
        self._owner = owner
        self._hosts: dict[str, Host] = {}
        self._emulated: Processor | None = None
        self._releases: dict[str, str] | None = None

    async def host(self, kind: Kind) -> Host:
        """What domains of that type are rendered for."""
        if kind not in self._hosts:
            self._hosts[kind] = await self._learn(
                "domain capabilities",
                lambda connection: self._ask_host(connection, kind),
            )
        return self._hosts[kind]

    def _ask_host(self, connection: Any, kind: Kind) -> Host:
        if connection.getType() == "TEST":
            self._emulated = Processor(model="libvirt's test driver's")
            return Host("test", "i686", "pc", "/usr/bin/test-emulator", self._owner)
        architecture = facts.machine_architecture()
        alias = "q35" if architecture == "x86_64" else "virt"
        text = connection.getDomainCapabilities(None, architecture, alias, kind, 0)
        if kind == "qemu":
            self._emulated = processor.emulated(text)
        capabilities = Xml.fromstring(text)  # noqa: S314 - libvirt's own output
        return Host(
            domain_type=kind,
            architecture=architecture,
            machine=capabilities.findtext("machine") or alias,
            emulator=capabilities.findtext("path")
            or f"/usr/bin/qemu-system-{architecture}",
            owner=self._owner,
        )

    async def releases(self) -> dict[str, str]:
        """libvirt's and the hypervisor's version, for people and for cache keys."""

        def ask(connection: Any) -> dict[str, str]:
            return {
                "libvirt": _version(connection.getLibVersion()),
                "hypervisor": _version(connection.getVersion()),
            }

        return await self._learn("versions", ask)

    async def versions(self, accelerator: Accelerator) -> Versions:
        """What machines are made by."""
        if self._releases is None:
            self._releases = await self.releases()
        host = await self.host(kind_of(accelerator))
        return Versions(machine=host.machine, **self._releases)

    async def processor(self, accelerator: Accelerator) -> Processor:
        """What guests of new machines find: under KVM the host's, as it is at the moment."""
        if accelerator == "kvm":
            return processor.passed_through(facts.processor_entry(), facts.kvm_nests())
        await self.host("qemu")
        assert self._emulated is not None  # noqa: S101 - host asked for it
        return self._emulated

    async def _learn(self, what: str, ask: Callable[[Any], T]) -> T:
        """libvirt may begin QEMU several times before it answers: half a minute on a busy host
        (measured). Who does not wait that long is let go; libvirt keeps the answer. It keeps no
        failure, such as that of a QEMU that somebody killed: it is asked once more.
        """

        async def learn() -> T:
            try:
                return await call()
            except HypervisorError as error:
                _log.warning("%s: it is asked once more", error)
                return await call()

        def call() -> Awaitable[T]:
            return self._connection.call(what, ask, deadline_s=START_DEADLINE_S)

        return await asyncio.shield(asyncio.ensure_future(learn()))


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
