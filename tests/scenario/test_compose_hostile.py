"""A composed driver in front of one that misbehaves: late, doubled and reordered events, hangs, broken calls, large lists."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.composed import Watching, composed, holding, settings_for, until
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.service import sandbox
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.extension import Context, Hold


def create(message: pb.DriverSandbox) -> pb.CreateSandboxRequest:
    return pb.CreateSandboxRequest(sandbox=message)


def told(sandbox_: pb.DriverSandbox, kind: str, status: str, reason: str) -> Any:
    snapshot = pb.DriverSandbox()
    snapshot.CopyFrom(sandbox_)
    del snapshot.status.conditions[:]
    snapshot.status.conditions.append(
        pb.DriverCondition(type=kind, status=status, reason=reason)
    )
    return pb.WatchSandboxesEvent(
        sandbox=pb.WatchSandboxesSandboxEvent(sandbox=snapshot)
    )


async def test_late_doubled_and_reordered_events_are_reasons_to_look_no_more(
    base: ProcessDriver, tmp_path: Path
) -> None:
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [world]) as (stub, composition):
        await stub.CreateSandbox(create(sandbox()))
        await until(lambda: world.told == ["ready"])
        there = base.sandboxes["s1"]
        for event in (
            told(there, "Suspended", "True", "Stopped"),  # of an earlier life
            told(there, "Ready", "False", "Exploded"),
            told(there, "Ready", "True", "Running"),
            told(there, "Ready", "True", "Running"),
            pb.WatchSandboxesEvent(
                deleted=pb.WatchSandboxesDeletedEvent(sandbox_id="s1")
            ),
            pb.WatchSandboxesEvent(
                deleted=pb.WatchSandboxesDeletedEvent(sandbox_id="never")
            ),
            pb.WatchSandboxesEvent(),
        ):
            base.tell(event)
        await asyncio.sleep(1.5)
        assert world.told == ["ready"]
        assert holding(tmp_path / "world") == {"first", "second", "run"}
        assert composition.registry.get("s1").record.up
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        base.tell(told(there, "Ready", "True", "Running"))
        await until(lambda: not composition.registry.all())
    assert world.told == ["ready", "stop", "delete"]
    assert holding(tmp_path / "world") == set()


async def test_a_base_that_hangs_costs_the_caller_its_deadline_and_no_more(
    base: ProcessDriver, tmp_path: Path
) -> None:
    released = threading.Event()

    def spoil(method: str, _request: Any, _context: Any) -> None:
        if method == "CreateSandbox":
            released.wait(30)

    base.spoil = spoil
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [world]) as (stub, composition):
        begun = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateSandbox(create(sandbox()), timeout=0.7)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begun < 15
        # Others are not held up meanwhile.
        await stub.ListSandboxes(pb.ListSandboxesRequest(), timeout=10)
        await asyncio.sleep(
            0.5
        )  # the call to the base has ended too: nobody waits for it
        released.set()
        await until(lambda: not composition.registry.all())
        assert base.sandboxes == {}, "it was made after all, and is deleted"
    assert holding(tmp_path / "world") == set()


async def test_a_base_that_ends_in_the_middle_of_a_create_has_nothing_afterwards(
    base: ProcessDriver, tmp_path: Path
) -> None:
    reached = threading.Event()

    def spoil(method: str, _request: Any, _context: Any) -> None:
        if method == "CreateSandbox":
            reached.set()
            time.sleep(0.5)  # made after all, when nobody listens any more

    base.spoil = spoil
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [world]) as (stub, composition):
        call = asyncio.ensure_future(stub.CreateSandbox(create(sandbox())))
        await asyncio.to_thread(reached.wait, 5)
        await asyncio.to_thread(base.stop)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        }
        await asyncio.sleep(0.6)
        base.spoil = lambda *_: None
        base.start()
        await until(lambda: not composition.registry.all() and not base.sandboxes)
    assert holding(tmp_path / "world") == set()


async def test_a_call_that_broke_is_made_again_where_that_is_safe(
    base: ProcessDriver, tmp_path: Path
) -> None:
    async with composed(settings_for(base, tmp_path, base_wait_s=5)) as (stub, _):
        await stub.CreateSandbox(create(sandbox()))
        await asyncio.to_thread(base.stop)
        waiting = asyncio.ensure_future(
            stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"))
        )
        await asyncio.sleep(0.5)
        assert not waiting.done(), "a gateway that starts must not meet an error now"
        base.start()
        await waiting


async def test_a_list_of_more_than_four_mebibytes_passes(
    base: ProcessDriver, tmp_path: Path
) -> None:
    async with composed(settings_for(base, tmp_path)) as (_, composition):
        for number in range(600):
            one = pb.DriverSandbox(id=f"s{number}", name="n")
            one.status.conditions.append(
                pb.DriverCondition(type="Ready", status="True", message="x" * 8192)
            )
            base.sandboxes[one.id] = one
        options = [("grpc.max_receive_message_length", -1)]
        path = f"unix:{tmp_path / 'c' / 'c.sock'}"
        async with grpc.aio.insecure_channel(path, options=options) as channel:
            call: Any = channel.unary_unary(
                "/openshell.compute.v1.ComputeDriver/ListSandboxes"
            )
            raw = await call(b"")
        assert len(raw) > 4 * 2**20
        assert len(pb.ListSandboxesResponse.FromString(raw).sandboxes) == 600
        assert composition.registry.all() == []


async def test_a_base_whose_answers_cannot_be_read_ends_nothing(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """Conditions that are no conditions, sandboxes without a status, another one's id."""
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [world]) as (stub, composition):
        await stub.CreateSandbox(create(sandbox()))
        await until(lambda: world.told == ["ready"])
        base.tell(
            pb.WatchSandboxesEvent(
                sandbox=pb.WatchSandboxesSandboxEvent(sandbox=pb.DriverSandbox(id="s1"))
            )
        )
        base.condition("s1", "", "maybe", "\0")
        base.condition("s1", "Suspended", "not at all", "")
        base.tell(told(pb.DriverSandbox(id="x" * 5000), "Ready", "True", ""))
        await asyncio.sleep(0.3)
        assert composition.registry.get("s1").record.up
        assert world.told == ["ready"]


async def test_a_base_that_is_restarted_under_thirty_two_gets_answers_them_or_they_are_told(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """A read may be asked again: who waited for the base that ended is answered by the next one."""
    waiting, go_on = threading.Semaphore(0), threading.Event()

    def held(method: str, _request: Any, _context: Any) -> None:
        if method == "GetSandbox" and not go_on.is_set():
            waiting.release()
            go_on.wait(10)

    async with composed(settings_for(base, tmp_path, base_wait_s=20.0)) as (stub, _):
        await stub.CreateSandbox(create(sandbox()))
        base.spoil = held
        request = pb.GetSandboxRequest(sandbox_id="s1")
        gets = [asyncio.ensure_future(_got(stub, request)) for _ in range(32)]
        for _ in gets:
            assert await asyncio.to_thread(waiting.acquire, timeout=10)
        await asyncio.to_thread(base.stop)
        go_on.set()
        base.start()
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*gets)
        assert answers == [base.sandboxes["s1"]] * 32
        assert (await stub.GetSandbox(request)).sandbox == base.sandboxes["s1"]


async def _got(stub: Any, request: Any) -> Any:
    return (await stub.GetSandbox(request)).sandbox


NEW_FIELD = b"\xfa\x3f\x03new"
"""Field 1023, of a contract to come."""


@pytest.mark.parametrize("trouble", [False, True], ids=["clean", "in trouble"])
async def test_what_a_newer_base_says_besides_reaches_who_asks_and_who_watches(
    trouble: bool, base: ProcessDriver, tmp_path: Path
) -> None:
    """Also where a condition of ours is added to it."""
    world = Stubborn(tmp_path / "world") if trouble else Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [world]) as (stub, made):
        await stub.CreateSandbox(create(sandbox()))
        base.sandboxes["s1"].MergeFromString(NEW_FIELD)
        if trouble:
            base.condition("s1", "Ready", "False", "Broken")
            await until(lambda: made.registry.get("s1").trouble)
        events: list[Any] = []
        reading = asyncio.create_task(_collect(stub, events))
        await until(lambda: events)
        base.condition("s1", "Ready", "True", "Running")
        await until(lambda: len(events) > 1)
        got = await stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"))
        listed = await stub.ListSandboxes(pb.ListSandboxesRequest())
        told = [e.sandbox.sandbox for e in events if e.HasField("sandbox")]
        for seen in (got.sandbox, listed.sandboxes[0], told[-1]):
            assert NEW_FIELD in seen.SerializeToString()
            added = {c.type for c in seen.status.conditions} - {"Ready"}
            assert added == ({"ExtensionsClean"} if trouble else set())
        reading.cancel()
        await asyncio.wait({reading})


class Stubborn(Watching):
    """What it holds until a stop cannot be given back."""

    async def undo(self, context: Context, hold: Hold) -> None:
        if hold.name == "run":
            raise RuntimeError("it does not let go")
        await super().undo(context, hold)


async def _collect(stub: Any, found: list[Any]) -> None:
    async for event in stub.WatchSandboxes(pb.WatchSandboxesRequest()):
        found.append(event)
