"""What a ledger acquires together: side by side, and as certain as one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from tests.fakes.journal import FakeJournal
from tests.fakes.world import World
from vmdriver.errors import HostError, Unavailable
from vmdriver.host.threads import finished
from vmdriver.lifecycle.engine.ledger import (
    Held,
    Ledger,
    Scope,
    VolatileJournal,
    Wanted,
    replay,
)
from vmdriver.lifecycle.engine.resource import FROZEN, PAUSED, WRITTEN
from vmdriver.lifecycle.memory.resources import is_being_written

T = TypeVar("T")
LIMIT_S = 20.0


class Host:
    """What is there, in the order in which it came, and the ledger that says so."""

    def __init__(self) -> None:
        self.world = World()
        self.journal = FakeJournal(self.world, "s1")
        self.ledger = Ledger(self.journal)
        self.there: list[str] = []
        self.begun: list[str] = []

    def on_disk(self) -> dict[str, bool]:
        return {h.key: h.done for h in replay(self.journal.read()).values()}

    def writes(self) -> int:
        return self.world.calls.count("append to journal")

    def wanted(
        self,
        key: str,
        effect: Callable[[], Awaitable[None]] | None = None,
        *,
        may_hang: bool = False,
    ) -> Wanted:
        async def have() -> None:
            assert key in self.on_disk(), "intent before effect"
            self.begun.append(key)
            if effect is not None:
                await effect()
            self.there.append(key)

        held = Held(key, Scope.RUNTIME, {"name": key})
        return Wanted(held, have, may_hang)

    async def undone(self) -> list[str]:
        """All that was given back, in that order."""
        found: list[str] = []

        async def undo(held: Held) -> None:
            found.append(held.key)

        assert await self.ledger.release(None, undo) == []
        return found


@pytest.fixture
def host() -> Host:
    return Host()


async def fail() -> None:
    raise HostError("broken")


async def within(work: Awaitable[T]) -> T:
    async with asyncio.timeout(LIMIT_S):
        return await work


async def test_what_does_not_stand_on_each_other_is_had_side_by_side(
    host: Host,
) -> None:
    first, second = asyncio.Event(), asyncio.Event()

    async def one() -> None:
        first.set()
        await second.wait()

    async def other() -> None:
        second.set()
        await first.wait()

    both = [host.wanted("one", one), host.wanted("other", other)]
    await within(host.ledger.acquire_together(both))
    assert host.on_disk() == {"one": True, "other": True}


async def test_intents_are_one_write_and_so_are_outcomes(host: Host) -> None:
    await host.ledger.acquire_together([host.wanted(key) for key in "abcd"])
    assert host.writes() == 2


async def test_outcomes_that_are_noted_later_are_on_disk_with_what_comes_next(
    host: Host,
) -> None:
    parts = [host.wanted(key) for key in "abcd"]
    await host.ledger.acquire_together(parts, note_later=True)
    assert all(held.done for held in host.ledger.held())
    assert host.on_disk() == dict.fromkeys("abcd", False)
    await host.ledger.acquire_together([host.wanted("machine")])
    assert host.on_disk() == dict.fromkeys([*"abcd", "machine"], True)
    assert host.writes() == 3


async def test_outcomes_that_could_not_be_written_are_written_with_what_comes_next(
    host: Host,
) -> None:
    await host.ledger.acquire_together([host.wanted("a")], note_later=True)
    host.world.fail = lambda call: call == "append to journal"
    with pytest.raises(HostError):
        await host.ledger.acquire_together([host.wanted("b")])
    host.world.fail = lambda _: False
    assert host.ledger.get("b") is None
    await host.ledger.acquire_together([host.wanted("b")])
    assert host.on_disk() == {"a": True, "b": True}


async def test_nothing_is_left_of_outcomes_of_what_was_given_back_meanwhile(
    host: Host,
) -> None:
    await host.ledger.acquire_together([host.wanted("a")], note_later=True)
    assert await host.undone() == ["a"]
    assert host.on_disk() == {}
    await host.ledger.acquire_together([host.wanted("b")])
    assert host.on_disk() == {"b": True}


async def test_an_error_waits_for_the_others(
    host: Host,
) -> None:
    failed = asyncio.Event()

    async def broken() -> None:
        failed.set()
        await fail()

    async def slow() -> None:
        await failed.wait()
        for _ in range(10):
            await asyncio.sleep(0)

    parts = [
        host.wanted("disk", slow),
        host.wanted("tap", broken),
    ]
    with pytest.raises(HostError, match="broken"):
        await within(host.ledger.acquire_together(parts))
    assert host.there == ["disk"]
    assert host.begun == ["disk", "tap"]
    assert host.on_disk() == {"disk": True, "tap": False}
    assert await host.undone() == ["tap", "disk"]


async def test_what_is_there_already_is_not_had_again(host: Host) -> None:
    await host.ledger.acquire_together([host.wanted("disk")])
    parts = [host.wanted("disk"), host.wanted("files")]
    await within(host.ledger.acquire_together(parts))
    assert host.there == ["disk", "files"]


async def test_what_failed_is_had_again_and_undone_in_the_first_ones_place(
    host: Host,
) -> None:
    with pytest.raises(HostError):
        await host.ledger.acquire_together([host.wanted("tap", fail)])
    await host.ledger.acquire_together([host.wanted("rules"), host.wanted("tap")])
    assert await host.undone() == ["rules", "tap"]


async def test_cancelled_it_finishes_what_was_begun(
    host: Host,
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await go_on.wait()

    parts = [host.wanted("tap", slow), host.wanted("files")]
    task = asyncio.create_task(host.ledger.acquire_together(parts))
    await within(begun.wait())
    for _ in range(10):  # the other one has ended by then
        await asyncio.sleep(0)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done(), "an effect that was begun goes on, whoever waits"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert host.there == ["files", "tap"]
    assert host.on_disk() == {"tap": False, "files": True}
    assert await host.undone() == ["files", "tap"]


async def test_cancelled_it_ends_a_program_that_hangs_and_waits_for_the_rest(
    host: Host,
) -> None:
    begun, forever = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    async def hangs() -> None:
        begun.set()
        try:
            await forever.wait()
        finally:
            ended.append("program")

    async def disk() -> None:
        await finished(asyncio.sleep(0.01))

    parts = [host.wanted("rules", hangs, may_hang=True), host.wanted("disk", disk)]
    task = asyncio.create_task(host.ledger.acquire_together(parts))
    await within(begun.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert ended == ["program"]
    assert "rules" not in host.there


async def test_nobody_else_gives_back_or_has_what_is_being_had(host: Host) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await go_on.wait()

    parts = [host.wanted("disk"), host.wanted("tap", slow)]
    task = asyncio.create_task(host.ledger.acquire_together(parts))
    await within(begun.wait())
    with pytest.raises(Unavailable):
        await host.ledger.acquire_together([host.wanted("tap")])

    async def undo(_: Held) -> None:
        raise AssertionError("it is being acquired")

    errors = await host.ledger.release(None, undo)
    assert [type(error) for error in errors] == [Unavailable, Unavailable]
    go_on.set()
    await within(task)
    assert host.on_disk() == {"disk": True, "tap": True}


async def test_in_turn_one_write_comes_before_all_effects_and_none_between_them(
    host: Host,
) -> None:
    async def nothing_is_written() -> None:
        assert host.writes() == 1

    parts = [host.wanted(key, nothing_is_written) for key in "abc"]
    await host.ledger.acquire_in_turn(parts)
    assert host.there == [*"abc"]
    assert host.writes() == 1
    assert host.on_disk() == dict.fromkeys("abc", False)
    assert all(held.done for held in host.ledger.held())
    assert await host.undone() == [*"cba"]
    assert host.on_disk() == {}


async def test_in_turn_what_failed_is_given_back_and_what_was_to_follow_is_not(
    host: Host,
) -> None:
    """Whoever undoes must look at what was begun. The rest may be somebody else's doing."""
    parts = [host.wanted("a"), host.wanted("b", fail), host.wanted("c")]
    with pytest.raises(HostError, match="broken"):
        await host.ledger.acquire_in_turn(parts)
    assert host.there == ["a"]
    assert host.begun == [*"ab"], "what stands on it is not begun"
    held = {held.key: held.done for held in host.ledger.held()}
    assert held == host.on_disk() == {"a": True, "b": False}
    with pytest.raises(HostError, match="broken"):
        await host.ledger.acquire_in_turn(parts)
    assert host.begun == [*"abb"], "what is there is not had again"
    assert await host.undone() == [*"ba"]


async def test_in_turn_what_an_earlier_try_had_begun_is_given_back_whatever_keeps_this_one(
    host: Host,
) -> None:
    with pytest.raises(HostError):
        await host.ledger.acquire_in_turn([host.wanted("b", fail)])
    with pytest.raises(HostError):
        await host.ledger.acquire_in_turn([host.wanted("a", fail), host.wanted("b")])
    assert host.begun == [*"ba"]
    assert await host.undone() == [*"ab"]


async def test_in_turn_what_was_not_begun_stays_where_that_cannot_be_noted(
    host: Host,
) -> None:
    async def on_a_full_disk() -> None:
        host.world.fail = lambda call: call == "append to journal"
        await fail()

    parts = [host.wanted("a", on_a_full_disk), host.wanted("b")]
    with pytest.raises(HostError, match="broken"):
        await host.ledger.acquire_in_turn(parts)
    host.world.fail = lambda _: False
    held = {held.key: held.done for held in host.ledger.held()}
    assert held == host.on_disk() == {"a": False, "b": False}
    assert await host.undone() == [*"ba"]


async def test_in_turn_cancelled_it_finishes_what_was_begun_and_strikes_the_rest(
    host: Host,
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await go_on.wait()

    parts = [host.wanted("a", slow), host.wanted("b")]
    task = asyncio.create_task(host.ledger.acquire_in_turn(parts))
    await within(begun.wait())
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(task)
    assert host.there == ["a"]
    assert host.on_disk() == {"a": False}
    assert await host.undone() == ["a"]


async def test_in_turn_nothing_begins_without_its_intent(host: Host) -> None:
    host.world.fail = lambda call: call == "append to journal"
    with pytest.raises(HostError):
        await host.ledger.acquire_in_turn([host.wanted("a"), host.wanted("b")])
    assert host.begun == []
    assert host.ledger.held() == ()


async def test_in_turn_nobody_else_has_what_is_under_way(host: Host) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        asked.set()
        await go_on.wait()

    parts = [host.wanted("a", slow), host.wanted("b")]
    work = asyncio.create_task(host.ledger.acquire_in_turn(parts))
    await within(asked.wait())
    with pytest.raises(Unavailable):
        await host.ledger.acquire_in_turn([host.wanted("b")])
    go_on.set()
    await within(work)
    assert host.there == [*"ab"]


async def test_memory_is_being_written_when_its_machine_stands_still_for_it(
    host: Host,
) -> None:
    """A driver that was killed while the workload was to be frozen leaves all three intents."""
    begun = [Held(key, Scope.CAPTURE) for key in (FROZEN, PAUSED, WRITTEN)]
    assert not is_being_written(Ledger(VolatileJournal()))
    assert not is_being_written(Ledger(VolatileJournal(*begun)))
    paused = replace(begun[1], done=True)
    assert not is_being_written(Ledger(VolatileJournal(paused)))
    assert is_being_written(Ledger(VolatileJournal(begun[0], paused, begun[2])))
