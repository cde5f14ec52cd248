"""What libvirt tells of machines, where one of them does not stop changing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import libvirt
import pytest

from vmdriver.host.lanes import Lanes
from vmdriver.hypervisor.connection import Connection

EVENTS = 300_000


class Domain:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


class Libvirt:
    """Its connection: whoever wants to be told is kept."""

    def __init__(self) -> None:
        self.tell: list[Any] = []

    def domainEventRegisterAny(self, _d: Any, _k: Any, tell: Any, _o: Any) -> None:
        self.tell.append(tell)

    def isAlive(self) -> int:
        return 1

    def close(self) -> None:
        self.tell.clear()


async def test_a_machine_that_does_not_stop_changing_is_told_of_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And others at once: the loop has time for them."""
    inner, told = Libvirt(), Counter[str]()
    quiet_at: list[float] = []
    monkeypatch.setattr(libvirt, "open", lambda _uri: inner)
    connection = Connection("test:///default", Lanes("test"))

    def heard(name: str) -> None:
        told[name] += 1
        if name == "quiet":
            quiet_at.append(time.monotonic())

    connection.on_domain_event(heard)
    await connection.call("look", lambda _: None)

    def flood() -> None:
        loud = Domain("loud")
        for _ in range(EVENTS):
            inner.tell[0](inner, loud, 0, 0, None)

    begun = time.monotonic()
    thread = threading.Thread(target=flood)
    thread.start()
    inner.tell[0](inner, Domain("quiet"), 0, 0, None)
    asked = time.monotonic()
    while thread.is_alive() or not quiet_at:
        await asyncio.sleep(0.01)
    took_s = time.monotonic() - begun
    await asyncio.sleep(0.2)
    assert quiet_at[0] - asked < 2
    assert 1 <= told["loud"] <= 2 + (took_s + 0.2) / 0.05
    before = told["loud"]
    inner.tell[0](inner, Domain("loud"), 0, 0, None)
    await asyncio.sleep(0.2)
    assert told["loud"] == before + 1, "the last change is never lost"
    connection.close()
