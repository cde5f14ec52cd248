"""What watchers of a composed driver are told who do not read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.base import Base
from vmdriver.compose.relay import Relay

MOST = 10_000


def snapshot(number: int) -> tuple[Any, bytes]:
    event = pb.WatchSandboxesEvent()
    event.sandbox.sandbox.id = f"s{number % 5}"
    event.sandbox.sandbox.name = str(number)
    return event, event.SerializeToString()


async def test_who_falls_behind_is_told_so_after_what_it_was_sent_without_a_gap() -> (
    None
):
    async def nobody(_listed: Any) -> None:
        return

    base = Base("unix:/nowhere", 0.1)
    relay = Relay(base, lambda _event: None, nobody)
    relay.publish(*snapshot(0))
    deaf, reading = relay.watch(), relay.watch()
    assert await anext(deaf) == await anext(reading) == snapshot(0)[1]
    for number in range(1, MOST + 200):
        event, raw = snapshot(number)
        relay.publish(event, raw)
        assert await anext(reading) is raw
    for number in range(1, MOST + 1):
        assert await anext(deaf) == snapshot(number)[1]
    assert await anext(deaf) is None
    with pytest.raises(StopAsyncIteration):
        await anext(deaf)
    # Whoever comes now has the same picture.
    late = relay.watch()
    newest = {(await anext(late) or b"") for _ in range(5)}
    assert newest == {snapshot(n)[1] for n in range(MOST + 195, MOST + 200)}
    relay.close()
    assert await anext(reading) is None
    for watcher in (late, reading):
        await watcher.aclose()
    await base.close()
    await asyncio.sleep(0)


async def test_what_is_told_while_it_ends_disturbs_nobody() -> None:
    """A call under way tells of what it did; the end had taken the last place of a full queue."""

    async def nobody(_listed: Any) -> None:
        return

    base = Base("unix:/nowhere", 0.1)
    relay = Relay(base, lambda _event: None, nobody)
    relay.publish(*snapshot(0))
    deaf = relay.watch()
    assert await anext(deaf) == snapshot(0)[1]
    for number in range(1, MOST + 1):
        relay.publish(*snapshot(number))
    relay.close()
    relay.publish(*snapshot(0))
    relay.close()
    told = [event async for event in deaf]
    assert (len(told), told[-1]) == (MOST + 1, None)
    await base.close()
    await asyncio.sleep(0)
