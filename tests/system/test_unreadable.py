"""Real machines whose record or ledger cannot be read."""

from __future__ import annotations

import os

import pytest

from tests.fakes.leftovers import leftovers
from tests.system.machines import INSTANCE, Driver
from vmdriver.model.set_aside import STATE_UNREADABLE

NAMES = ("record.json", "ledger.jsonl")


def test_machines_go_on_until_their_files_are_repaired_or_the_sandboxes_deleted(
    driver: Driver,
) -> None:
    """One sandbox's record, and another's ledger."""
    sandboxes = [driver.create(name=name.partition(".")[0]) for name in NAMES]
    paths = [driver.directory(s) / n for s, n in zip(sandboxes, NAMES, strict=True)]
    pids = [driver.machine_pid(sandbox) for sandbox in sandboxes]
    driver.kill()
    intact = {path: path.read_bytes() for path in paths}
    for path, text in intact.items():
        path.write_bytes(b"\0" * len(text) + b"\n")
    driver.start()
    findings = {f["check"]: f for f in driver.cli("doctor")["findings"]}
    for sandbox in sandboxes:
        assert STATE_UNREADABLE in driver.condition(sandbox)
        assert findings[f"sandbox {sandbox}"]["level"] == "fail"
    assert [driver.machine_pid(sandbox) for sandbox in sandboxes] == pids
    driver.kill()
    assert driver.cli("sweep", "--dry-run")["orphans"] == []
    for path, text in intact.items():
        path.write_bytes(text)
    driver.start()
    for sandbox in sandboxes:
        driver.wait(sandbox, "Running")
    assert [driver.machine_pid(sandbox) for sandbox in sandboxes] == pids

    driver.kill()
    for path, text in intact.items():
        path.write_bytes(text[:-9] + b"\n")  # a short last line
    driver.start()
    for sandbox, pid in zip(sandboxes, pids, strict=True):
        assert driver.delete(sandbox)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert list((driver.host.state / "layers").rglob(f"{sandbox}.*")) == []
    assert leftovers(INSTANCE, driver.host.state) == []
