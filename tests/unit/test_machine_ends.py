"""What keeps a machine from being ended, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import pytest

from vmdriver.errors import StorageError
from vmdriver.host.lanes import Lanes
from vmdriver.hypervisor.connection import Connection, translated
from vmdriver.hypervisor.machines import Machines
from vmdriver.hypervisor.wall.boxes import Boxes
from vmdriver.lifecycle.ports.host import Ownership


class Machine:
    """One that runs until it is destroyed, and is known until it is undefined."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def isActive(self) -> bool:
        return "destroy" not in self.calls

    def destroy(self) -> None:
        self.calls.append("destroy")

    def undefineFlags(self, _flags: int) -> None:
        self.calls.append("undefine")


class Answering(Connection):
    """A libvirt with that machine, or without any."""

    def __init__(self, machine: Machine | None) -> None:
        super().__init__("qemu:///system", Lanes("libvirt"))
        self._machine = machine

    def lookupByName(self, _name: str) -> Machine:
        if self._machine is None:
            error = libvirt.libvirtError("none")
            error.err = (libvirt.VIR_ERR_NO_DOMAIN, 0, "none", 0, "", None, None, 0, 0)
            raise error
        return self._machine

    async def call(
        self, what: str, function: Callable[[Any], Any], *_rest: Any, **_more: Any
    ) -> Any:
        with translated(what):
            return function(self)


async def test_a_box_that_cannot_be_removed_keeps_no_machine_running(
    tmp_path: Path,
) -> None:
    """As on a file system that has become read-only."""
    in_the_way = tmp_path / "boxes" / "i-box"
    in_the_way.mkdir(parents=True)
    machine = Machine()
    machines = Machines(Answering(machine), "i", Ownership(1, 1), boxes=Boxes(tmp_path))
    with pytest.raises(StorageError, match="the box of i-box cannot be removed"):
        await machines.destroy("i-box")
    assert machine.calls == ["destroy", "undefine"]
    in_the_way.rmdir()
    await machines.destroy("i-box")


async def test_the_box_of_a_machine_that_libvirt_does_not_know_goes_too(
    tmp_path: Path,
) -> None:
    in_the_way = tmp_path / "boxes" / "i-box"
    in_the_way.mkdir(parents=True)
    machines = Machines(Answering(None), "i", Ownership(1, 1), boxes=Boxes(tmp_path))
    with pytest.raises(StorageError, match="cannot be removed"):
        await machines.destroy("i-box")
    in_the_way.rmdir()
    in_the_way.write_text("words")
    await machines.destroy("i-box")
    assert not in_the_way.exists()
