"""Whatever a driver of 0.1.0 was at when it was killed: its ledger says what is held, and today's driver gives it back.

Each ledger of tests/fixtures/state-0.1.0 is cut off after each of its lines, as a kill would have done it.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver
from tests.fakes.earlier_extensions import Follower, Outside, Recorder
from tests.fakes.earlier_state import FIXTURE
from tests.fakes.world import World
from vmdriver.model.phase import DomainState

KEYS = {
    *("lease", "overlay", "launch-files", "tap", "firewall", "machine"),
    *("mapped-memory", "capture:image", "capture:frozen", "capture:paused"),
    *("capture:memory", "capture:layer"),
    *("launch-hook:", "delete-hook:", "run-phases:", "stay-phases:", "hold:"),
}
"""Every key that 29bd4dd writes; those of extensions begin so."""
LEDGERS = {
    path.parent.name: path.read_text().replace("@ROOT@", "/earlier").splitlines()
    for path in sorted((FIXTURE / "tree" / "state").glob("sandboxes/*/ledger.jsonl"))
}
LONGEST = max(len(lines) for lines in LEDGERS.values())


def held_after(lines: list[str]) -> dict[str, dict[str, Any]]:
    """What a ledger of 0.1.0 holds after these lines, key and data in order, by the words of that release."""
    held: dict[str, dict[str, Any]] = {}
    for line in map(json.loads, lines):
        if line["op"] in {"intent", "data"}:
            held[line["key"]] = line["data"]
        elif line["op"] == "moved":
            held[line["key"]] = held.pop(line["key"])
        elif line["op"] == "released":
            held.pop(line["key"], None)
    return held


def put(world: World, sandbox_id: str, held: dict[str, dict[str, Any]]) -> None:
    """All of it is on the host."""
    mark = f"vmdriver/earlier/{sandbox_id}"
    for key, data in held.items():
        match key:
            case "machine":
                world.domains[data["domain"]] = DomainState.PAUSED
                world.marks[data["domain"]] = mark
            case "tap":
                world.taps[data["tap"]] = mark
            case "firewall":
                world.tables[data["tap"]] = mark
            case "launch-files":
                world.files.add(data["seed"])
            case "overlay" | "capture:layer":
                world.files.add(data["path"])
            case "mapped-memory" | "capture:image":
                world.checkpoints[data["directory"]] = ""


def told_of(sandbox_id: str, held: dict[str, dict[str, Any]]) -> set[str]:
    """What extensions must have been told when it has gone."""
    told = set()
    accepted = json.loads(record_of(sandbox_id))["extensions"]["accepted"]
    saved = held.get("delete-hook:recorder", {}).get("saved", {})
    for key, data in held.items():
        kind = key.partition(":")[0]
        if kind == "hold":
            told.add(f"-{data['kind']} {data['name']}")
        elif kind == "run-phases" and not data.get("told"):
            told.add(f"after-stop {sandbox_id}")
        elif kind == "stay-phases":
            told.add(f"{'after-delete' if accepted else 'create-failed'} {sandbox_id}")
        elif kind == "launch-hook":
            told.add(f"-ticket {sandbox_id}")
        elif kind == "delete-hook":
            told.add(f"deleted {sandbox_id} {saved}")
    return told


def record_of(sandbox_id: str) -> str:
    text = (FIXTURE / "tree/state/sandboxes" / sandbox_id / "record.json").read_text()
    return text.replace("@ROOT@", "/earlier")


def test_the_fixture_has_every_key_that_there_was() -> None:
    written = {json.loads(line)["key"] for lines in LEDGERS.values() for line in lines}
    of_the_driver = {key for key in written if key in KEYS}
    beginnings = {key.partition(":")[0] + ":" for key in written - of_the_driver}
    assert of_the_driver | beginnings == KEYS


@pytest.mark.parametrize("first", range(0, LONGEST, 8))
async def test_what_is_held_after_any_line_is_given_back(
    first: int, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text("")
    for length in range(first, min(first + 8, LONGEST) + 1):
        world, expected = World(), set[str]()
        outside = Outside(tmp_path / "outside")
        for sandbox_id, lines in LEDGERS.items():
            held = held_after(lines[:length])
            world.journals[sandbox_id] = lines[:length]
            record = {**json.loads(record_of(sandbox_id)), "intent": "deleted"}
            world.records[sandbox_id] = json.dumps(record)
            put(world, sandbox_id, held)
            expected |= told_of(sandbox_id, held)
        driver = FakeDriver(world, extensions=[Follower(outside), Recorder(outside)])
        try:
            await driver.manager.recover()
            await asyncio.gather(*map(driver.gone, driver.sandboxes()))
        finally:
            await driver.close()
        assert world.objects() == set(), f"left over after line {length}"
        assert world.checkpoints == {}, f"left over after line {length}"
        assert not world.records
        assert not world.journals
        assert expected <= set(outside.news()), f"not told after line {length}"
