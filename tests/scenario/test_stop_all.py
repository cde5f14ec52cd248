"""vmdriver stop-all before a driver that runs: the command, the real server, a fake host."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.fakes.service import served
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.cli import main
from vmdriver.model.phase import Phase


async def stop_all(folder: Path) -> int:
    socket = str(folder / "run" / "d.sock")
    words = ["stop-all", "--bind-socket", socket, "--state-dir", str(folder)]
    return await asyncio.to_thread(main, words)


async def test_every_sandbox_is_stopped(tmp_path: Path) -> None:
    async with served(tmp_path) as client:
        for name in ("s1", "s2", "s3"):
            await client.create(name)
        assert await stop_all(tmp_path) == 0
        phases = {client.driver.phase(name) for name in ("s1", "s2", "s3")}
        assert phases == {Phase.STOPPED}
        assert await stop_all(tmp_path) == 0, "again"


async def test_one_that_cannot_be_stopped_is_named_and_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    async with served(tmp_path, world=world) as client:
        for name in ("s1", "s2"):
            await client.create(name)
        stays = client.driver.plan("s1").domain
        world.fail = lambda call: call.startswith("destroy") and stays in call
        deleting = client.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await client.driver.troubled()
        assert await stop_all(tmp_path) == 1
        said = capsys.readouterr().err
        assert "not stopped: s1: " in said
        assert "s2" not in said
        assert client.driver.phase("s2") is Phase.STOPPED
        world.fail = lambda _call: False
        client.driver.hint()
        await deleting


async def test_without_a_driver_and_machines_there_is_nothing_to_stop(
    tmp_path: Path,
) -> None:
    assert await stop_all(tmp_path) == 0


async def test_a_driver_that_ends_at_once_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "sandboxes" / "sandbox-1" / "ledger.jsonl"
    left.parent.mkdir(parents=True)
    tap = {"op": "intent", "key": "tap", "scope": "runtime", "data": {}}
    left.write_text(f"{json.dumps(tap)}\n")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with asyncio.timeout(20):
        assert await stop_all(tmp_path) == 2
    assert "a driver for that could not be begun" in capsys.readouterr().err
