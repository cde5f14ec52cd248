"""Tells sandboxes of devices that are not on the host any more while their machines run. The kernel
takes such a device out of a machine by itself (vfio-pci asks QEMU to let go of it).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vmdriver.lifecycle.control.sandboxes import Sandboxes
from vmdriver.lifecycle.launch.devices import Devices


@dataclass(eq=False)
class DeviceWatch:
    """Each device once, until it is back."""

    devices: Devices
    sandboxes: Sandboxes
    _told: set[str] = field(default_factory=set, init=False)

    async def look(self) -> None:
        """HostError."""
        gone = await self.devices.gone()
        self._told &= gone.keys()
        for address, owner in gone.items():
            worker = self.sandboxes.workers.get(owner)
            if worker is None or address in self._told:
                continue
            self._told.add(address)
            text = f"device {address} is not on the host any more"
            worker.sandbox.tell("DeviceLost", text, warn=True)
