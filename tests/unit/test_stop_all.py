"""What `vmdriver stop-all` begins a driver for where none runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmdriver.cli.stop_all import held

TAP = {"op": "intent", "key": "tap", "scope": "runtime", "data": {}}
DISK = {"op": "intent", "key": "disk", "scope": "persistent", "data": {}}
RELEASED = {"op": "released", "key": "tap"}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "sandboxes" / "sandbox-1" / "ledger.jsonl"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("lines", "begun"),
    [([], False), ([DISK], False), ([DISK, TAP], True), ([DISK, TAP, RELEASED], False)],
    ids=["nothing", "a disk", "a network", "one that was given back"],
)
def test_what_a_machine_has_left_while_no_driver_ran_is_seen(
    lines: list[dict[str, Any]], begun: bool, ledger: Path, tmp_path: Path
) -> None:
    ledger.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert held(tmp_path) is begun


@pytest.mark.parametrize("text", ["no json\n", '{"op": "done", "key": "tap"}\n'])
def test_a_ledger_that_cannot_be_read_may_say_that_something_is_left(
    text: str, ledger: Path, tmp_path: Path
) -> None:
    ledger.write_text(text)
    assert held(tmp_path)


def test_a_host_without_sandboxes_needs_no_driver(tmp_path: Path) -> None:
    assert not held(tmp_path / "state")
