"""Many watchers at once: what they see, and what those who do not read cost the others."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.driver import FakeDriver, kept_on_disk, spec
from tests.fakes.loop_turns import LoopTurns
from tests.fakes.service import Served, sandbox, served
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import eventually
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.host.threads import Threads
from vmdriver.lifecycle.engine.broadcast import Happened, Subscription
from vmdriver.model.condition import PlatformEvent
from vmdriver.model.record import utc_now
from vmdriver.service import codec
from vmdriver.storage.layout import Layout

END = "TheEnd"
"""Reason of the event that a reader stops at."""


def watch(stub: Any) -> Any:
    return stub.WatchSandboxes(pb.WatchSandboxesRequest())


async def read_to_end(stream: Any) -> list[Any]:
    """Every event up to END, which is not among them."""
    found: list[Any] = []
    async for event in stream:
        if event.platform_event.event.reason == END:
            stream.cancel()
            return found
        found.append(event)
    raise AssertionError("the stream ended first")


def picture(events: list[Any]) -> dict[str, bytes]:
    """What somebody who has seen these believes is there."""
    found: dict[str, bytes] = {}
    for event in events:
        kind = event.WhichOneof("payload")
        if kind == "sandbox":
            found[event.sandbox.sandbox.id] = event.sandbox.sandbox.SerializeToString()
        elif kind == "deleted":
            found.pop(event.deleted.sandbox_id, None)
    return found


@asynccontextmanager
async def another_client(s: Served) -> AsyncIterator[Any]:
    """A stub on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{s.socket}", options) as channel:
        yield pb_grpc.ComputeDriverStub(channel)


async def watched(s: Served, readers: int) -> list[asyncio.Task[list[Any]]]:
    """So many that read to the end, and whose list has been made."""
    before = subscribers(s)
    tasks = [asyncio.create_task(read_to_end(watch(s.stub))) for _ in range(readers)]
    await eventually(lambda: subscribers(s) == before + readers, "they do not watch")
    return tasks


def subscribers(s: Served) -> int:
    return len(s.driver.inside.subscriptions())


async def nothing_left(s: Served) -> None:
    """No watcher of this driver, and nothing that gRPC did for one."""

    def left() -> list[str]:
        names = [task.get_name() for task in asyncio.all_tasks()]
        return [name for name in names if "WatchSandboxes" in name]

    await eventually(lambda: not subscribers(s), "a watcher is left over")
    await eventually(lambda: not left(), "a watcher's call is left over")


def notices(s: Served) -> int:
    """Platform events that anything in this process still holds, but for the last ones, which the driver keeps for `top`."""
    held = sum(isinstance(found, Happened) for found in gc.get_objects())
    return held - len(s.driver.broadcaster.recent())


async def test_fifty_watchers_see_every_event_in_order_and_a_late_one_the_same_end(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as s:
        readers = await watched(s, 50)
        names = [f"s{number}" for number in range(12)]
        creates = [
            s.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox(name)))
            for name in names
        ]
        for call in creates[:6]:
            await call
        (late,) = await watched(s, 1)
        for call in creates[6:]:
            await call
        await s.driver.settled()
        for name in names[:4]:
            await s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=name))
        listed = await s.stub.ListSandboxes(pb.ListSandboxesRequest())
        s.driver.tell(names[-1], END, "")
        seen, *others = await asyncio.gather(*readers)
        late_seen = await late
        await nothing_left(s)
    assert all(other == seen for other in others)
    there = {found.id: found.SerializeToString() for found in listed.sandboxes}
    assert set(there) == set(names[4:])
    assert picture(seen) == picture(late_seen) == there
    assert _joins(late_seen, seen), "a gap, or an event of before its list"


def _joins(late: list[Any], whole: list[Any]) -> bool:
    """Whether `late` is a list of what was there at some moment, and then all that followed."""
    for moment in range(len(whole) + 1):
        rest = whole[moment:]
        head = late[: len(late) - len(rest)]
        if len(head) + len(rest) == len(late) and late[len(head) :] == rest:
            all_there = all(e.WhichOneof("payload") == "sandbox" for e in head)
            if all_there and picture(head) == picture(whole[:moment]):
                return True
    return False


class Counted:
    """An encoder of the codec's, counted."""

    def __init__(self, encode: Callable[[Any], bytes]) -> None:
        self._encode, self.times = encode, 0

    def __call__(self, value: Any) -> bytes:
        self.times += 1
        return self._encode(value)


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Counted]]:
    names = ("encode_answer", "encode_entry", "encode_seen", "encode_notice")
    found = {name: Counted(getattr(codec, name)) for name in names}
    for name, counted in found.items():
        monkeypatch.setattr(codec, name, counted)
    return found  # type: ignore[return-value]


async def test_what_everybody_is_told_is_encoded_once(
    tmp_path: Path, encoders: dict[str, Counted]
) -> None:
    async with served(tmp_path) as s:
        for number in range(3):
            await s.create(f"s{number}")
        readers = await watched(s, 50)
        assert encoders["encode_seen"].times <= 3
        for number in range(20):
            s.driver.tell("s1", "Noise", str(number))
        s.driver.tell("s1", END, "")
        await asyncio.gather(*readers)
        assert encoders["encode_seen"].times == 3
        assert encoders["encode_notice"].times == 21
        for _ in range(10):
            await s.stub.ListSandboxes(pb.ListSandboxesRequest())
            await s.stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"))
        assert encoders["encode_entry"].times == 3
        assert encoders["encode_answer"].times == 1
        # What has changed is another status: it is not shown as it was.
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        found = await s.stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"))
        assert found.sandbox.status.conditions[0].reason == "Stopped"
        assert encoders["encode_answer"].times == 2
        await nothing_left(s)


async def test_a_watcher_that_never_reads_costs_its_queue_and_keeps_nobody_waiting(
    tmp_path: Path,
) -> None:
    limit, burst = 64, 32
    async with served(tmp_path, watch_limit=limit) as s, another_client(s) as other:
        await s.create()
        before, deaf = notices(s), watch(other)
        await deaf.read()
        (deaf_queue,) = s.driver.inside.subscriptions()
        reader = watch(s.stub)
        await reader.read()

        async def told(numbers: range) -> None:
            for number in numbers:
                for index in range(burst):
                    s.driver.tell("s1", "Noise", "x" * 8000 + f" {number} {index}")
                for index in range(burst):
                    event = (await asyncio.wait_for(reader.read(), 10)).platform_event
                    assert event.event.message.endswith(f" {number} {index}")

        rounds = 0
        while not deaf_queue.fell_behind:  # HTTP/2's window takes MiBs first
            assert rounds < 1000, "it was sent more than it read"
            await told(range(rounds, rounds + 1))
            rounds += 1
        await told(range(rounds, rounds + 20))
        gc.collect()
        assert notices(s) - before <= limit + burst
        # It has lost its place, and is told so after what it was sent.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while True:
                await asyncio.wait_for(deaf.read(), 10)
        assert caught.value.code() is grpc.StatusCode.ABORTED
        reader.cancel()
        await nothing_left(s)
        gc.collect()
        assert notices(s) <= before + 1


async def test_five_hundred_watchers_are_served(tmp_path: Path) -> None:
    async with served(tmp_path) as s:
        await s.create()
        readers = await watched(s, 500)
        for number in range(5):
            s.driver.tell("s1", "Noise", str(number))
        s.driver.tell("s1", END, "")
        seen, *others = await asyncio.gather(*readers)
        assert [e.platform_event.event.message for e in seen[1:]] == list("01234")
        assert all(other == seen for other in others)
        await nothing_left(s)


async def test_watchers_that_go_in_the_middle_take_nothing_from_the_others(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as s:
        await s.create()
        staying = await watched(s, 3)
        going = [watch(s.stub) for _ in range(30)]
        for number, stream in enumerate(going):
            if number % 3:
                await stream.read()
            s.driver.tell("s1", "Noise", str(number))
            if number % 2:
                await asyncio.sleep(0)
            stream.cancel()
        s.driver.tell("s1", END, "")
        for seen in await asyncio.gather(*staying):
            told = [e.platform_event.event.message for e in seen[1:]]
            assert told == [str(number) for number in range(30)]
        await nothing_left(s)


async def test_everybody_sees_two_deletes_of_two_hundred_at_once_as_one_of_each(
    tmp_path: Path,
) -> None:
    names = [f"s{number}" for number in range(200)]
    settings = dataclasses.replace(SETTINGS, max_sandboxes=500)
    async with served(tmp_path, settings=settings) as s:
        await asyncio.gather(*(s.driver.manager.create(spec(n), None) for n in names))
        await s.driver.settled(60)
        readers = await watched(s, 3)
        answers = await asyncio.gather(
            *(
                s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=name))
                for name in [*names, *names]
            )
        )
        assert all(first.deleted for first in answers[: len(names)])
        assert not s.driver.sandboxes()
        end = PlatformEvent(END, "", utc_now())
        s.driver.broadcaster.publish(Happened(names[0], end))
        for seen in await asyncio.gather(*readers):
            gone = [e.deleted.sandbox_id for e in seen if e.HasField("deleted")]
            assert sorted(gone) == sorted(names)
            assert not picture(seen)
        await nothing_left(s)


async def test_two_hundred_come_and_go_in_short_turns_of_the_loop(
    tmp_path: Path,
) -> None:
    """Each turn's own CPU time, so that it says the same on a busy machine: whoever waits for a
    turn waits for that.
    """
    settings = dataclasses.replace(SETTINGS, max_sandboxes=500)
    layout, files = Layout(tmp_path / "state"), Threads("files", 8)
    layout.make()
    driver = FakeDriver(World(), settings=settings, **kept_on_disk(layout, files))
    await driver.manager.recover()
    names = [f"s{number}" for number in range(200)]
    queues = [driver.broadcaster.subscribe() for _ in range(10)]
    drains = [asyncio.create_task(drained(queue)) for queue in queues]
    with LoopTurns() as turns:
        await at_a_time(
            32, [partial(driver.manager.create, spec(n), None) for n in names]
        )
        await driver.settled(60)
        for _ in range(20):
            assert len(driver.manager.statuses()) == len(names)
            await asyncio.sleep(0)
        await at_a_time(32, [partial(driver.manager.delete, n, "") for n in names])
    assert not driver.sandboxes()
    await driver.close()
    files.close()
    assert all(count >= 3 * len(names) for count in await asyncio.gather(*drains))
    assert len(turns.ms) > 200, "too few for a share of them to mean something"
    assert turns.percentile(0.99) <= 20, "the loop is kept too long"


async def drained(queue: Subscription) -> int:
    """Read to the end; how many there were."""
    count = 0
    while await queue.next() is not None:
        count += 1
    assert not queue.fell_behind
    return count


async def at_a_time(most: int, calls: list[Callable[[], Awaitable[Any]]]) -> None:
    """Make them all, so many under way."""
    left = iter(calls)

    async def some() -> None:
        for call in left:
            await call()

    await asyncio.gather(*(some() for _ in range(most)))
