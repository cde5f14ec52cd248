"""Real machines whose record or ledger cannot be read."""

from __future__ import annotations

import os

import pytest

from tests.fakes.leftovers import leftovers
from tests.system.machines import INSTANCE, Driver
from vmdriver.model.set_aside import STATE_UNREADABLE


@pytest.mark.parametrize("name", ["record.json", "ledger.jsonl"])
def test_the_machine_goes_on_until_the_file_is_repaired_or_the_sandbox_deleted(
    driver: Driver, name: str
) -> None:
    sandbox = driver.create()
    pid = driver.machine_pid(sandbox)
    path = driver.directory(sandbox) / name
    driver.kill()
    intact = path.read_bytes()
    path.write_bytes(b"\0" * len(intact) + b"\n")
    driver.start()
    assert STATE_UNREADABLE in driver.condition(sandbox)
    findings = {f["check"]: f for f in driver.cli("doctor")["findings"]}
    assert findings[f"sandbox {sandbox}"]["level"] == "fail"
    assert driver.machine_pid(sandbox) == pid
    driver.kill()
    assert driver.cli("sweep", "--dry-run")["orphans"] == []
    path.write_bytes(intact)
    driver.start()
    driver.wait(sandbox, "Running")
    assert driver.machine_pid(sandbox) == pid

    driver.kill()
    path.write_bytes(intact[:-9] + b"\n")  # a short last line
    driver.start()
    assert driver.delete(sandbox)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert leftovers(INSTANCE, driver.host.state) == []
    assert list((driver.host.state / "layers").rglob(f"{sandbox}.*")) == []
