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
VOLUMES = {"op": "intent", "key": "volumes", "scope": "attached", "data": {}}
PAUSED = {"op": "intent", "key": "capture:paused", "scope": "capture", "data": {}}
RELEASED = {"op": "released", "key": "tap"}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "sandboxes" / "sandbox-1" / "ledger.jsonl"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("lines", "begun"),
    [
        ([], False),
        ([DISK], False),
        ([DISK, VOLUMES], False),
        ([DISK, TAP], True),
        ([DISK, PAUSED], True),
        ([DISK, TAP, RELEASED], False),
    ],
    ids=[
        *("nothing", "a disk", "volumes beside its memory", "a network", "a capture"),
        "one that was given back",
    ],
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


@pytest.mark.parametrize("named", ["by a flag", "in the environment"])
def test_its_driver_has_the_settings_that_it_was_given_itself(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever they are from: it would not know its own machines by others."""
    monkeypatch.chdir(tmp_path)
    file = Path("own.toml")
    file.write_text(
        f'state_dir = "{tmp_path / "state"}"\nmachine_uids = "7000-7999"\nvcpus = 1\n'
    )
    environment = {
        "VMDRIVER_ADDRESS_POOL": "10.9.0.0/17",
        "OPENSHELL_VM_DRIVER_VCPUS": "3",
        "HOME": "/root",
    }
    by_flag = named == "by a flag"
    if not by_flag:
        environment["VMDRIVER_CONFIG"] = str(file)
    own = load(
        file=file if by_flag else None,
        flags={"mem_mib": "777", "dns": "192.0.2.1, 192.0.2.2"},
        environment=environment,
    )
    words = own_driver(own, tmp_path / "own.sock")
    monkeypatch.chdir("/")
    found = vars(parser().parse_args(words[words.index("serve") :]))
    flags = {
        k[4:]: v for k, v in found.items() if k.startswith("set_") and v is not None
    }
    again = load(file=found["config"], flags=flags, environment=own.environment)
    assert again.config.isolation.machine_uids == "7000-7999"
    assert again.config.network.address_pool == "10.9.0.0/17"
    assert again.config.machines.vcpus == 3
    assert again.config.machines.mem_mib == 777
    assert "HOME" not in own.environment
    assert flags["bind_socket"] == str(tmp_path / "own.sock")
    assert flags["bind_tls"] == "", "nobody else asks it for anything"
    assert flags["templates_enabled"] == "false"
    assert flags["state_dir"] == str(tmp_path / "state")
