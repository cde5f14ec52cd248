"""What becomes of a connection to libvirt that is lost."""

from __future__ import annotations

import asyncio
import gc
import weakref

import libvirt
import pytest

from vmdriver.host.lanes import Lanes
from vmdriver.hypervisor import connection as module
from vmdriver.hypervisor.connection import Connection


class Lost:
    """libvirt's word on a connection whose daemon went away, or went on too late."""

    subscribed = 0

    def isAlive(self) -> int:
        return 0

    def domainEventRegisterAny(self, *_arguments: object) -> None:
        self.subscribed += 1


async def test_a_lost_connection_is_never_freed_under_libvirts_event_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[Lost]] = []

    def open_another(_uri: str) -> Lost:
        found = Lost()
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(libvirt, "open", open_another)
    monkeypatch.setattr(module, "start_event_loop", lambda: None)
    connection = Connection("qemu:///system", Lanes("libvirt"))
    connection.on_domain_event(lambda _name: None)
    for _ in range(3):
        await connection.call("look", lambda _: None)
    await asyncio.sleep(0)
    gc.collect()
    found = [reference() for reference in made]
    assert len(found) == 3
    assert all(one is not None and one.subscribed == 2 for one in found)
