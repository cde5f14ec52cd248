"""Starts whose run nobody has seen yet: a base that says what it said before, a process that has ended in between, a disk that is full."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
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
from tests.fakes.eager import EAGER
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.service import sandbox
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc

ROOT = Path(__file__).resolve().parents[2]
ID = {"sandbox_id": "s1"}
LIFE, RUN = {"first", "second"}, {"first", "second", "run"}
CREATE = pb.CreateSandboxRequest(sandbox=sandbox())
START, STOP = pb.StartSandboxRequest(**ID), pb.StopSandboxRequest(**ID)
IN_BEFORE_START, STARTED = 9, 10
"""Of the lines that `World` writes: a create has 7, a stop 1."""


@pytest.mark.parametrize("kill_at", [IN_BEFORE_START, STARTED])
async def test_a_start_whose_before_start_was_cut_off_is_not_passed_on_without_it(
    base: ProcessDriver, tmp_path: Path, kill_at: int
) -> None:
    """The machine would run without what the extension was to take for it."""
    socket, state = tmp_path / "c" / "c.sock", tmp_path / "s"
    words = ["-m", "tests.fakes.composed", base.socket, socket, state, str(kill_at)]
    first = subprocess.Popen([sys.executable, *map(str, words)], cwd=ROOT)
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=EAGER) as channel:
        stub: Any = pb_grpc.ComputeDriverStub(channel)
        await stub.CreateSandbox(CREATE, wait_for_ready=True, timeout=20)
        await stub.StopSandbox(STOP, timeout=20)
        await failed(stub.StartSandbox(START, timeout=20))
    assert await asyncio.to_thread(first.wait, 20) == -signal.SIGKILL
    spy = Runs(state / "world")
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    async with composed(settings, [spy]) as (stub, _):
        await stub.StartSandbox(START)
        await until(lambda: spy.told == ["begins", "ready"])
        assert holding(state / "world") == RUN
        await stub.StopSandbox(STOP)
        assert spy.told == ["begins", "ready", "stop"]
        assert holding(state / "world") == LIFE


async def test_a_start_that_could_not_be_noted_is_no_run(
    base: ProcessDriver, tmp_path: Path
) -> None:
    spy = Runs(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [spy]) as (stub, composition):
        await run_once(stub, spy)
        in_the_way = tmp_path / "s" / "sandboxes" / "s1" / ".record.json.part"
        in_the_way.mkdir()
        await failed(stub.StartSandbox(START))
        assert not composition.registry.get("s1").record.up
        in_the_way.rmdir()
        spy.told.clear()
        await stub.StartSandbox(START)
        await until(lambda: spy.told == ["begins", "ready"])
        assert holding(tmp_path / "world") == RUN


async def test_what_a_base_says_until_a_start_shows_is_of_the_run_before(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """One that accepts a start and does it by and by, as a cluster does: it says for a while that the sandbox is suspended, which is why gateways take no notice of that."""
    spy = Runs(tmp_path / "world")
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    async with composed(settings, [spy]) as (stub, composition):
        await run_once(stub, spy)
        base.by_and_by = True
        await stub.StartSandbox(START)
        base.condition("s1", "Suspended", "True", "Stopped")
        await asyncio.sleep(1.3)
        assert (spy.told, holding(tmp_path / "world")) == (["begins"], RUN)
        base.condition("s1", "Ready", "True", "Running")
        await until(lambda: spy.told == ["begins", "ready"])
        assert composition.registry.get("s1").start_open_until is None
        base.condition("s1", "Suspended", "True", "Stopped")
        await until(lambda: spy.told == ["begins", "ready", "stop"])


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
async def test_a_base_that_fails_after_it_has_started_something_runs_it(
    base: ProcessDriver, tmp_path: Path, code: grpc.StatusCode
) -> None:
    spy = Runs(tmp_path / "world")
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    async with composed(settings, [spy]) as (stub, _):
        await run_once(stub, spy)

        def spoil(method: str, _request: Any, context: Any) -> None:
            if method == "StartSandbox":
                base.run("s1")
                context.abort(code, "cannot read its state")

        base.spoil = spoil
        assert await failed(stub.StartSandbox(START)) is code
        await until(lambda: spy.told == ["begins", "ready"])
        assert holding(tmp_path / "world") == RUN


async def test_a_base_that_fails_after_it_has_made_something_has_it_deleted(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """Whoever asked has been told that there is none; it ran without what had been taken for it."""
    spy, base.lingers = Runs(tmp_path / "world"), True

    def spoil(method: str, request: Any, context: Any) -> None:
        if method == "CreateSandbox":
            base.sandboxes["s1"] = pb.DriverSandbox(id="s1", name=request.sandbox.name)
            base.run("s1")
            context.abort(grpc.StatusCode.INTERNAL, "cannot read its state")

    base.spoil = spoil
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    async with composed(settings, [spy]) as (stub, composition):
        assert await failed(stub.CreateSandbox(CREATE)) is grpc.StatusCode.INTERNAL
        assert holding(tmp_path / "world") == RUN
        base.gone("s1")
        await until(lambda: not composition.registry.all())
    assert holding(tmp_path / "world") == set()
    assert "DeleteSandbox" in [name for name, _ in base.seen]


async def test_a_base_that_fails_before_it_has_made_anything_is_not_waited_for(
    base: ProcessDriver, tmp_path: Path
) -> None:
    spy = Runs(tmp_path / "world")
    base.fail("CreateSandbox", grpc.StatusCode.INTERNAL, "the disk is full")
    settings = settings_for(base, tmp_path, create_grace_s=20.0)
    async with composed(settings, [spy]) as (stub, composition):
        assert await failed(stub.CreateSandbox(CREATE)) is grpc.StatusCode.INTERNAL
        assert composition.registry.all() == []
    assert holding(tmp_path / "world") == set()


async def test_what_cannot_be_noted_of_one_sandbox_keeps_no_other_waiting(
    base: ProcessDriver, tmp_path: Path
) -> None:
    spy = Runs(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [spy]) as (stub, composition):
        await stub.CreateSandbox(CREATE)
        await until(lambda: "ready" in spy.told)  # nothing is being noted any more
        in_the_way = tmp_path / "s" / "sandboxes" / "s1" / ".record.json.part"
        in_the_way.mkdir()
        base.gone("s1")
        await until(lambda: "stop" in spy.told)
        await asyncio.sleep(0.2)
        base.fail("CreateSandbox", grpc.StatusCode.UNAVAILABLE)
        other = pb.CreateSandboxRequest(sandbox=sandbox("s2"))
        code = await failed(stub.CreateSandbox(other))
        assert code is grpc.StatusCode.UNAVAILABLE
        await until(lambda: [s.record.id for s in composition.registry.all()] == ["s1"])
        in_the_way.rmdir()
        await until(lambda: not composition.registry.all())
