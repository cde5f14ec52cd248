"""PCI functions of the host, as the core sees them."""

from __future__ import annotations

from typing import Protocol

from vmdriver.model.devices import DevicePicture, PassedFunction
from vmdriver.model.plan import MachineUser


class HostDevices(Protocol):
    """Given to machines, and taken back."""

    async def look(self, addresses: tuple[str, ...]) -> DevicePicture:
        """Those that are there, everything in their IOMMU groups, and what the host does with each
        of it. Nothing is changed.
        """

    async def give(
        self, functions: tuple[PassedFunction, ...], user: MachineUser
    ) -> None:
        """Have them driven by vfio-pci, and their groups' nodes be that user's alone. May be
        repeated. When it fails, there may be a half of it, which `take_back` undoes.
        """

    async def take_back(self, functions: tuple[PassedFunction, ...]) -> None:
        """Reset what has been given, have it driven by who drove it before, and the nodes be root's
        again. May be repeated, and come after a half of `give` or of itself; one that is not there
        any more is given back. HostError: it is not, and is nobody else's meanwhile.
        """
