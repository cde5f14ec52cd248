"""What a log as JSON says of each line: whose it is, what led to it, and which step of that."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.service import sandbox, served
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES, eventually, operations, running
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.host import log
from vmdriver.host.log_context import at, being_at
from vmdriver.host.threads import Threads, alone

TRACE = "0af7651916cd43dd8448eb211c80319c"
EVIL_STATE = (("tracestate", "a=CANARY"),)
PARENT = (("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),)
Line = dict[str, str]


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


class Log:
    """What was logged since it was read last."""

    def __init__(self) -> None:
        self.written = io.StringIO()

    def __call__(self) -> list[Line]:
        found = [json.loads(line) for line in self.written.getvalue().splitlines()]
        self.written.seek(0)
        self.written.truncate()
        return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    root, own, made = logging.getLogger(), logging.getLogger("vmdriver"), Log()
    before = list(root.handlers), root.level, own.level
    monkeypatch.setattr(sys, "stderr", made.written)
    log.set_up("debug", "json")
    yield made
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    own.setLevel(before[2])


def said(found: list[Line], words: str) -> Line:
    """The first line with these words."""
    return next(line for line in found if words in line["message"])


async def create(s: Any, name: str, metadata: Any = None, **more: Any) -> None:
    request = pb.CreateSandboxRequest(sandbox=sandbox(name, **more))
    await s.stub.CreateSandbox(request, metadata=metadata)
    await s.driver.settled()


async def test_all_that_a_create_leads_to_has_its_sandbox_and_its_callers_trace(
    short: Path, lines: Log
) -> None:
    async with served(short) as s:
        await create(s, "s1", PARENT)
        found = [line for line in lines() if line["message"].startswith("s1: ")]
        assert said(found, "Started")["step"] == "launch"
        assert said(found, "Running:")["step"] == "confirm running"
        assert {line["sandbox"] for line in found} == {"s1"}
        assert {line["trace"] for line in found} == {TRACE}
        assert all("step" in line for line in found)


async def test_calls_without_a_trace_get_one_each(short: Path, lines: Log) -> None:
    async with served(short) as s:
        await create(s, "s1")
        made = {line["trace"] for line in lines() if line.get("sandbox") == "s1"}
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        stopped = said(lines(), "s1: Stopped")
        assert len(made) == 1
        assert len(stopped["trace"]) == 32
        assert stopped["trace"] not in made
        assert stopped["step"] == "stop"


async def test_two_sandboxes_at_once_are_not_mixed_up(short: Path, lines: Log) -> None:
    async with served(short) as s:
        for name in ("s1", "s2", "s3"):
            await s.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox(name)))
        await s.driver.settled()
        traces = {}
        for line in lines():
            who, colon, _ = line["message"].partition(": ")
            if colon and who in {"s1", "s2", "s3"}:
                assert line["sandbox"] == who
                traces.setdefault(who, set()).add(line["trace"])
        assert [len(found) for found in traces.values()] == [1, 1, 1]
        assert len(set.union(*traces.values())) == 3


async def test_a_refusal_is_said_with_the_callers_trace(
    short: Path, lines: Log
) -> None:
    async with served(short) as s:
        await create(s, "s1")
        lines()
        with pytest.raises(Exception, match="exists"):
            await create(s, "s1", PARENT)
        line = said(lines(), "ALREADY_EXISTS")
        assert (line["trace"], line["sandbox"]) == (TRACE, "s1")


async def test_what_the_driver_sees_for_itself_has_a_trace_of_its_own(
    lines: Log,
) -> None:
    driver = await running()
    await driver.close()
    world: World = driver.world
    lines()
    world.end_machine(driver.plan().domain)
    second = FakeDriver(world)
    await second.manager.recover()
    await second.settled()
    line = said(lines(), "MachineCrashed")
    assert (line["sandbox"], len(line["trace"])) == ("s1", 32)
    await second.close()


async def test_an_operators_snapshot_names_its_steps_and_what_is_built_for_all_is_nobodys(
    lines: Log,
) -> None:
    driver = FakeDriver(World(), settings=TEMPLATES)
    await driver.manager.recover()
    await driver.manager.create(spec("s1"), None)
    await driver.settled()
    await eventually(driver.manager.templates.listed, "no template was built")
    ready = next(line for line in lines() if "is ready" in line["message"])
    assert not {"sandbox", "trace", "step"} & ready.keys()
    do, one = operations(driver)
    await do.create_snapshot(one, "kept", disk_only=False)
    taken = said(lines(), "SnapshotTaken")
    assert (taken["sandbox"], taken["step"]) == ("s1", "job")
    await driver.close()


async def test_news_from_outside_of_a_sandboxs_own_loop_name_it_too(
    lines: Log,
) -> None:
    driver = await running()
    lines()
    driver.tell("s1", "NetworkRestored", "what its guard tells")
    line = said(lines(), "NetworkRestored")
    assert line["sandbox"] == "s1"
    assert "trace" not in line
    await driver.close()


async def test_threads_know_what_they_were_begun_for() -> None:
    threads = Threads("test", 1)
    with being_at(sandbox="s1", step="tap"):
        assert (await threads.run(at)).sandbox == "s1"
        assert (await alone("test", at)).step == "tap"
    assert (await threads.run(at)).sandbox == ""
    threads.close()


async def test_a_token_is_in_no_line_and_text_is_as_it_was(
    short: Path, lines: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    async with served(short) as s:
        await create(s, "s1", EVIL_STATE + PARENT, sandbox_token="CANARY")
        await create(s, "s2", (("traceparent", "CANARY"),))
        found = json.dumps(lines())
        assert TRACE in found
        assert "CANARY" not in found
        log.set_up("debug", "text")
        await create(s, "s3", PARENT)
        text = capsys.readouterr().err
        assert (
            " INFO vmdriver.lifecycle.engine.sandbox: s3: Started: the machine" in text
        )
        assert TRACE not in text
