"""PCI functions in memory, given and taken back in the half steps of the kernel's."""

from __future__ import annotations

from dataclasses import replace

from tests.fakes.world import World
from vmdriver.errors import HostError
from vmdriver.lifecycle.ports.host import Guard, no_crash_point
from vmdriver.model.devices import VFIO, DevicePicture, PassedFunction
from vmdriver.model.plan import MachineUser


class FakeHostDevices:
    def __init__(self, world: World, crash_point: Guard = no_crash_point) -> None:
        self._world, self._crash_point = world, crash_point

    async def look(self, addresses: tuple[str, ...]) -> DevicePicture:
        self._world.act("look at devices")
        found = {a: f for a, f in self._world.pci.items() if a in addresses}
        groups = {f.group for f in found.values()}
        together = {a: f for a, f in self._world.pci.items() if f.group in groups}
        return DevicePicture(iommu=True, vfio=True, functions=together)

    async def give(
        self, functions: tuple[PassedFunction, ...], user: MachineUser
    ) -> None:
        for function in functions:
            self._world.act(f"give device {function.address}")
            found = self._world.pci.get(function.address)
            if found is None:
                raise HostError("it is gone", reason="DeviceMissing")
            for half in (
                replace(found, override=VFIO),
                replace(found, override=VFIO, driver=""),
                replace(found, override=VFIO, driver=VFIO),
            ):
                self._world.pci[function.address] = half
                point = f"devices:{function.address}:{half.override}:{half.driver}"
                await self._crash_point(point)
        for group in {f.group for f in functions}:
            self._world.act(f"give group {group}")
            self._world.groups[group] = user.uid

    async def take_back(self, functions: tuple[PassedFunction, ...]) -> None:
        for group in {f.group for f in functions}:
            self._world.act(f"take back group {group}")
            held = [d for d, gs in self._world.group_users.items() if group in gs]
            assert not held, f"the kernel would wait for {held}"
            self._world.groups.pop(group, None)
        for function in functions:
            self._world.act(f"take back device {function.address}")
            found = self._world.pci.get(function.address)
            if found is None:
                continue
            for half in (
                replace(found, driver=""),
                replace(found, override=function.override, driver=""),
                replace(found, override=function.override, driver=function.driver),
            ):
                self._world.pci[function.address] = half
                point = f"devices:{function.address}:{half.override}:{half.driver}"
                await self._crash_point(point)
