"""What `vmdriver stop-all` begins a driver for where none runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vmdriver.cli.main import parser
from vmdriver.cli.stop_all import held, own_driver
from vmdriver.config import load

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


def test_its_driver_has_the_settings_that_it_was_given_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("own.toml")
    file.write_text(f'state_dir = "{tmp_path / "state"}"\nmachine_uids = "7000-7999"\n')
    words = own_driver(load(file=file), file, tmp_path / "own.sock")
    monkeypatch.chdir("/")
    given = parser().parse_args(words[words.index("serve") :])
    again = load(file=given.config).config
    assert again.isolation.machine_uids == "7000-7999"
    assert given.set_bind_socket == str(tmp_path / "own.sock")
    assert given.set_bind_tls == "", "nobody else asks it for anything"
    assert given.set_state_dir == str(tmp_path / "state")
