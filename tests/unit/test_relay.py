"""What watchers of a composed driver are told who do not read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose import relay as relays
from vmdriver.compose.base import Base
from vmdriver.compose.relay import Backlog, Relay
from vmdriver.lifecycle.engine.broadcast import GONE_S, MOST_GONE

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


def end(name: str) -> tuple[Any, bytes]:
    event = pb.WatchSandboxesEvent()
    event.deleted.sandbox_id = name
    return event, event.SerializeToString()


async def test_who_comes_late_is_told_what_has_gone_of_late_before_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gateway may have been away just then, and would wait for an end that nobody tells again."""

    async def nobody(_listed: Any) -> None:
        return

    async def told(count: int) -> list[bytes | None]:
        watcher = relay.watch()
        found = [await anext(watcher) for _ in range(count)]
        # Nothing of before comes after that.
        relay.publish(*snapshot(4))
        assert await anext(watcher) == snapshot(4)[1]
        await watcher.aclose()
        return found

    base = Base("unix:/nowhere", 0.1)
    relay = Relay(base, lambda _event: None, nobody)
    now = [1000.0]
    monkeypatch.setattr("vmdriver.compose.relay.time.monotonic", lambda: now[0])
    for number in range(5):
        relay.publish(*snapshot(number))
    for name in ("s0", "s1", "s0"):  # a base that comes back tells of it again
        relay.publish(*end(name))
    present = [snapshot(number)[1] for number in (2, 3, 4)]
    assert await told(5) == [end("s1")[1], end("s0")[1], *present]
    relay.publish(*snapshot(1))  # another one of that name
    assert await told(5) == [end("s0")[1], *present, snapshot(1)[1]]
    now[0] += GONE_S + 1
    assert await told(4) == [*present, snapshot(1)[1]]
    await base.close()


async def test_of_many_that_have_gone_only_the_last_are_kept() -> None:
    async def nobody(_listed: Any) -> None:
        return

    base = Base("unix:/nowhere", 0.1)
    relay = Relay(base, lambda _event: None, nobody)
    for number in range(MOST_GONE + 2):
        relay.publish(*end(f"s{number}"))
    watcher = relay.watch()
    found = [await anext(watcher) for _ in range(MOST_GONE)]
    assert (found[0], found[-1]) == (end("s2")[1], end(f"s{MOST_GONE + 1}")[1])
    await watcher.aclose()
    await base.close()


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


async def drained(backlog: Backlog) -> list[bytes]:
    found = []
    while (raw := await backlog.next()) is not None:
        found.append(raw)
    return found


async def test_events_are_bounded_by_their_number_and_the_end_is_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relays, "MOST", 3)
    backlog = Backlog()
    assert [backlog.offer(b"x") for _ in range(4)] == [True, True, True, False]
    assert await drained(backlog) == [b"x"] * 3


async def test_large_events_are_bounded_by_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relays, "MOST_BYTES", 100)
    backlog = Backlog()
    assert backlog.offer(b"x" * 60)
    assert await backlog.next() == b"x" * 60
    assert backlog.offer(b"y" * 60), "what was taken does not count"
    assert not backlog.offer(b"z" * 60)
    assert backlog.bytes == 60
    assert await drained(backlog) == [b"y" * 60]


async def test_one_that_is_larger_than_all_that_may_wait_still_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relays, "MOST_BYTES", 100)
    backlog = Backlog()
    assert backlog.offer(b"x" * 1000)
    assert not backlog.offer(b"y")
    assert await drained(backlog) == [b"x" * 1000]
