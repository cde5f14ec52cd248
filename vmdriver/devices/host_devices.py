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
    """Each group's changes come one after the other; one that hangs holds up no other, and nothing
    more is done to that group before it has ended.
    """

    def __init__(
        self, files: Files | None = None, *, change_s: float = _CHANGE_S
    ) -> None:
        self.files, self._change_s = files or Files(), change_s
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
            deadline_s=self._change_s,
        )

    async def take_back(self, functions: tuple[PassedFunction, ...]) -> None:
        await self._lanes.run(
            _lane(functions),
            f"give {_named(functions)} back to the host",
            lambda: binding.take_back(self.files, functions),
            deadline_s=self._change_s,
        )


def _lane(functions: tuple[PassedFunction, ...]) -> str:
    return ",".join(str(group) for group in sorted({f.group for f in functions}))


def _named(functions: tuple[PassedFunction, ...]) -> str:
    return ", ".join(f.address for f in functions)
