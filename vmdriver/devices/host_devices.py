"""Implements lifecycle.ports.devices.HostDevices with sysfs and devtmpfs."""

from __future__ import annotations

from vmdriver.devices import binding, looking
from vmdriver.devices.files import Files
from vmdriver.host.lanes import Lanes
from vmdriver.model.devices import DevicePicture, PassedFunction
from vmdriver.model.plan import MachineUser

_LOOK_S = 10.0
_CHANGE_S = 30.0
"""A driver lets go of a function when its last user has; one that never does is left behind."""


class SysfsDevices:
    """Each group's changes come one after the other; one that hangs holds up no other."""

    def __init__(self, files: Files | None = None) -> None:
        self.files = files or Files()
        self._lanes = Lanes("devices")

    async def look(self, addresses: tuple[str, ...]) -> DevicePicture:
        return await self._lanes.run(
            "",
            "look at PCI devices",
            lambda: looking.look(self.files, addresses),
            deadline_s=_LOOK_S,
        )

    async def give(
        self, functions: tuple[PassedFunction, ...], user: MachineUser
    ) -> None:
        await self._lanes.run(
            _lane(functions),
            f"have {_named(functions)} from the host",
            lambda: binding.give(self.files, functions, user),
            deadline_s=_CHANGE_S,
        )

    async def take_back(self, functions: tuple[PassedFunction, ...]) -> None:
        await self._lanes.run(
            _lane(functions),
            f"give {_named(functions)} back to the host",
            lambda: binding.take_back(self.files, functions),
            deadline_s=_CHANGE_S,
        )


def _lane(functions: tuple[PassedFunction, ...]) -> str:
    return ",".join(str(group) for group in sorted({f.group for f in functions}))


def _named(functions: tuple[PassedFunction, ...]) -> str:
    return ", ".join(f.address for f in functions)
