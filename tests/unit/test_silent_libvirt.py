"""Ending a machine where libvirt says nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmdriver.errors import DriverError, TimedOut, Unavailable
from vmdriver.host.lanes import Lanes
from vmdriver.hypervisor import qemu_process
from vmdriver.hypervisor.abilities import Abilities
from vmdriver.hypervisor.connection import Connection
from vmdriver.hypervisor.machines import Machines
from vmdriver.lifecycle.ports.host import Ownership


@pytest.mark.parametrize("error", [TimedOut, Unavailable])
async def test_qemu_is_ended_also_where_libvirt_is_not_even_asked(
    error: Callable[[str], DriverError], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[str] = []

    def kill(_directory: Path, domain: str) -> bool:
        killed.append(domain)
        return True

    class Silent(Connection):
        async def call(self, what: str, *_rest: Any, **_more: Any) -> Any:
            raise error(f"{what}: no answer")

    monkeypatch.setattr(qemu_process, "kill", kill)
    connection = Silent("qemu:///system", Lanes("libvirt"))
    machines = Machines(connection, "i", Abilities(connection, Ownership(1, 1)))
    with pytest.raises(DriverError, match="no answer"):
        await machines.destroy("i-box")
    assert killed == ["i-box"]
    assert not connection.lanes.is_busy("kill i-box")
