"""libvirt that has to ask QEMU first what it can do, on a busy host, or where that QEMU is killed."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from tests.unit.test_plan_rendering import plan
from vmdriver.errors import HypervisorError, TimedOut
from vmdriver.host.lanes import Lanes
from vmdriver.hypervisor import connection as connection_module
from vmdriver.hypervisor.abilities import Abilities
from vmdriver.hypervisor.connection import Connection
from vmdriver.hypervisor.machines import Machines
from vmdriver.lifecycle.ports.host import Ownership


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """libvirt's test driver, which says what it can once this is set."""
    event = threading.Event()
    real = Abilities._ask_host

    def slow(abilities: Abilities, connection: Any, kind: Any) -> Any:
        event.wait(60)
        return real(abilities, connection, kind)

    monkeypatch.setattr(Abilities, "_ask_host", slow)
    yield event
    event.set()


def machines() -> Machines:
    connection = Connection("test:///default", Lanes("test"))
    owner = Ownership(os.getuid(), os.getgid())
    return Machines(connection, "test", Abilities(connection, owner))


async def test_a_start_that_waits_for_it_is_given_up(answered: threading.Event) -> None:
    ours, begun = machines(), time.monotonic()
    start = asyncio.create_task(ours.start(plan(), "vmdriver/test/s1"))
    await asyncio.sleep(0.1)
    ours.abandon(plan().domain)
    with pytest.raises(TimedOut, match="given up"):
        await start
    assert time.monotonic() - begun < 10
    assert await ours.marked() == []
    answered.set()
    assert (await ours.host("qemu")).architecture == "i686", "it is asked again"


async def test_whoever_is_cancelled_does_not_wait_for_it(
    answered: threading.Event,
) -> None:
    begun = time.monotonic()
    work = asyncio.create_task(machines().versions("tcg"))
    await asyncio.sleep(0.1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert time.monotonic() - begun < 10


async def test_it_may_take_longer_than_what_takes_milliseconds(
    answered: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox must not fail because the first one on a busy host is slow."""
    call = Connection.call
    monkeypatch.setitem(call.__kwdefaults__, "deadline_s", 0.2)
    assert connection_module.START_DEADLINE_S >= 60
    asyncio.get_running_loop().call_later(0.6, answered.set)
    assert (await machines().versions("tcg")).machine == "pc"


@pytest.mark.parametrize("times", [1, 2])
async def test_a_question_whose_qemu_was_killed_is_asked_once_more(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel ends one where memory is short; a sandbox failed of it."""
    real, left = Abilities._ask_host, [libvirt.libvirtError("killed")] * times

    def killed(abilities: Abilities, connection: Any, kind: Any) -> Any:
        if left:
            raise left.pop()
        return real(abilities, connection, kind)

    monkeypatch.setattr(Abilities, "_ask_host", killed)
    if times == 1:
        assert (await machines().host("qemu")).architecture == "i686"
        return
    with pytest.raises(HypervisorError, match="domain capabilities"):
        await machines().host("qemu")
    assert not left
