"""A base that does not say whether it has done what it was asked for: nothing is decided before it is seen, nor twice."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.composed import (
    Runs,
    composed,
    failed,
    holding,
    run_once,
    settings_for,
    until,
)
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.service import sandbox
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.store import Stage
from vmdriver.errors import Unavailable
from vmdriver.extension import Context, Draft

ID = {"sandbox_id": "s1"}
LIFE, RUN = {"first", "second"}, {"first", "second", "run"}
CREATE = pb.CreateSandboxRequest(sandbox=sandbox())


class Spy(Runs):
    """`away`: the call at which its service cannot be reached."""

    def __init__(self, path: Path, away: str = "") -> None:
        super().__init__(path)
        self.away = away

    async def before_start(self, context: Context) -> None:
        if self.away == "before_start":
            raise Unavailable("the address service is away")
        await super().before_start(context)

    async def before_create(self, context: Context, draft: Draft) -> None:
        await super().before_create(context, draft)
        if self.away == "before_create":
            raise Unavailable("the address service is away")

    async def on_create_failed(self, context: Context) -> None:
        self.told.append("create failed")


def asked(base: ProcessDriver, method: str) -> int:
    return [name for name, _ in base.seen].count(method)


@contextlib.contextmanager
def held_up(base: ProcessDriver, held: str) -> Iterator[threading.Event]:
    """The base does it when the event is set, whoever has gone by then."""
    go_on = threading.Event()

    def spoil(method: str, _request: Any, _context: Any) -> None:
        if method == held:
            go_on.wait(20)

    base.spoil = spoil
    try:
        yield go_on
    finally:
        go_on.set()
        base.spoil = lambda *_: None


async def test_a_start_that_takes_longer_than_its_caller_waits_is_one_run(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """The base says for a while what it said before: that it is down."""
    spy = Spy(tmp_path / "world")
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    start = pb.StartSandboxRequest(**ID)
    async with composed(settings, [spy]) as (stub, composition):
        await run_once(stub, spy)
        with held_up(base, "StartSandbox") as go_on:
            late = stub.StartSandbox(start, timeout=0.5)
            assert await failed(late) is grpc.StatusCode.DEADLINE_EXCEEDED
            base.condition("s1", "Suspended", "True", "Stopped")
            await asyncio.sleep(1.3)  # it is looked at once more by then
            assert spy.told == ["begins"]
            assert holding(tmp_path / "world") == RUN
            go_on.set()
            await until(lambda: spy.told == ["begins", "ready"])
        assert composition.registry.get("s1").start_open_until is None
        await stub.StartSandbox(start)
        await stub.StopSandbox(pb.StopSandboxRequest(**ID))
        assert spy.told == ["begins", "ready", "stop"]
        assert holding(tmp_path / "world") == LIFE


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED]
)
async def test_a_start_that_never_comes_about_is_over_after_a_while(
    base: ProcessDriver, tmp_path: Path, code: grpc.StatusCode
) -> None:
    spy = Spy(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [spy]) as (stub, _):
        await run_once(stub, spy)
        base.fail("StartSandbox", code)
        start = pb.StartSandboxRequest(**ID)
        assert await failed(stub.StartSandbox(start)) is code
        assert spy.told == ["begins"]
        await until(lambda: spy.told == ["begins", "stop"])
        await until(lambda: holding(tmp_path / "world") == LIFE)
        base.spoil = lambda *_: None
        await stub.StartSandbox(start)
        await until(lambda: spy.told == ["begins", "stop", "begins", "ready"])


async def test_a_start_that_was_asked_for_by_a_process_before_may_still_come_about(
    base: ProcessDriver, tmp_path: Path
) -> None:
    spy = Spy(tmp_path / "world")
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    with held_up(base, "StartSandbox") as go_on:
        async with composed(settings, [spy]) as (stub, _):
            await run_once(stub, spy)
            late = stub.StartSandbox(pb.StartSandboxRequest(**ID), timeout=0.3)
            await failed(late)
        async with composed(settings, [spy]) as (_, composition):
            await until(lambda: composition.follower.relay.connected.is_set())
            await asyncio.sleep(0.3)
            assert spy.told == ["begins"]
            go_on.set()
            await until(lambda: spy.told == ["begins", "ready"])


async def test_an_extension_that_is_away_has_nothing_started(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """The base was not asked: there is nothing to wait for."""
    spy = Spy(tmp_path / "world")
    settings = settings_for(base, tmp_path, create_grace_s=60.0)
    start = pb.StartSandboxRequest(**ID)
    async with composed(settings, [spy]) as (stub, composition):
        await run_once(stub, spy)
        spy.away = "before_start"
        assert await failed(stub.StartSandbox(start)) is grpc.StatusCode.UNAVAILABLE
        assert spy.told == ["stop"]
        assert not composition.registry.get("s1").record.up
        spy.away = ""
        await stub.StartSandbox(start)
        await until(lambda: spy.told == ["stop", "begins", "ready"])
        assert asked(base, "StartSandbox") == 1


async def test_an_extension_that_is_away_has_nothing_created(
    base: ProcessDriver, tmp_path: Path
) -> None:
    spy = Spy(tmp_path / "world", away="before_create")
    settings = settings_for(base, tmp_path, create_grace_s=60.0)
    async with composed(settings, [spy]) as (stub, composition):
        assert await failed(stub.CreateSandbox(CREATE)) is grpc.StatusCode.UNAVAILABLE
        assert composition.registry.all() == []
        assert holding(tmp_path / "world") == set()
        assert asked(base, "CreateSandbox") == 0
        spy.away = ""
        await stub.CreateSandbox(CREATE)


async def test_what_appears_late_keeps_what_is_held_for_it_until_it_is_gone(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """A base whose deletes are only accepted when they are answered: its machine runs for a while."""
    spy, base.lingers = Spy(tmp_path / "world"), True
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    async with composed(settings, [spy]) as (stub, composition):
        with held_up(base, "CreateSandbox") as go_on:
            await failed(stub.CreateSandbox(CREATE, timeout=0.3))
            one = composition.registry.get("s1")
            await until(lambda: not one.lock.locked())
            go_on.set()
            await until(lambda: asked(base, "DeleteSandbox"))
            await asyncio.sleep(0.3)
            assert holding(tmp_path / "world") == RUN
            assert spy.told == ["begins"]
        base.gone("s1")
        await until(lambda: not composition.registry.all())
        assert holding(tmp_path / "world") == set()
        assert spy.told == ["begins", "stop", "create failed"]


async def test_a_delete_that_comes_before_what_it_is_for_is_not_the_end_of_it(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """The create was not answered in time; a base that does not know the sandbox yet has nothing to delete."""
    spy = Spy(tmp_path / "world")
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    async with composed(settings, [spy]) as (stub, composition):
        with held_up(base, "CreateSandbox") as go_on:
            await failed(stub.CreateSandbox(CREATE, timeout=0.3))
            answer = await stub.DeleteSandbox(pb.DeleteSandboxRequest(**ID))
            assert not answer.deleted
            assert holding(tmp_path / "world") == RUN
            go_on.set()
            await until(lambda: not composition.registry.all())
        assert base.sandboxes == {}
        assert asked(base, "DeleteSandbox") >= 2
        assert holding(tmp_path / "world") == set()


async def test_a_delete_that_is_refused_leaves_a_sandbox_that_can_be_started(
    base: ProcessDriver, tmp_path: Path
) -> None:
    spy = Spy(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [spy]) as (stub, composition):
        await run_once(stub, spy)
        base.fail(
            "DeleteSandbox", grpc.StatusCode.FAILED_PRECONDITION, "it is protected"
        )
        delete = pb.DeleteSandboxRequest(**ID)
        code = await failed(stub.DeleteSandbox(delete))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert composition.registry.get("s1").record.stage is Stage.PRESENT
        await stub.StartSandbox(pb.StartSandboxRequest(**ID))
        await until(lambda: spy.told == ["begins", "ready"])
        base.spoil = lambda *_: None
        assert (await stub.DeleteSandbox(delete)).deleted
        await until(lambda: not composition.registry.all())
    assert holding(tmp_path / "world") == set()


async def test_a_base_that_says_of_a_delete_that_there_is_none_is_believed(
    base: ProcessDriver, tmp_path: Path
) -> None:
    spy = Spy(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [spy]) as (stub, composition):
        await run_once(stub, spy)
        base.forget("s1")
        base.fail("DeleteSandbox", grpc.StatusCode.NOT_FOUND, "none of that id")
        delete = pb.DeleteSandboxRequest(**ID)
        assert await failed(stub.DeleteSandbox(delete)) is grpc.StatusCode.NOT_FOUND
        assert composition.registry.all() == []
    assert spy.told == ["delete"]
    assert holding(tmp_path / "world") == set()
