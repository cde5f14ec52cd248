"""What code that escaped into a QEMU can open on the host."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.adversary.inside import everything_below, in_machine, openable, two_running
from tests.system.machines import Driver

WHO = """
import json, os
status = dict(line.split(":", 1) for line in open("/proc/self/status")) if os.path.exists("/proc/self/status") else {}
print(json.dumps({"uid": os.getresuid(), "gid": os.getresgid(), "caps": status.get("CapBnd", "0").strip()}))
"""


def test_who_attacks_here_is_who_the_machine_is(driver: Driver) -> None:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    pid = driver.machine_pid(sandbox)
    of_qemu = re.search(r"^Uid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert of_qemu is not None
    found = in_machine(pid, WHO)
    assert found["uid"] == [int(of_qemu[1])] * 3 != [os.geteuid()] * 3
    assert found["gid"][0] != 0
    assert int(found["caps"], 16) == 0


def test_no_machine_can_open_what_is_the_drivers_own(driver: Driver) -> None:
    """Records, ledgers, sockets that take orders, and the notes about images (their disks are there to be read)."""
    first, second = two_running(driver)
    state = driver.host.state
    mine = [state / "run", driver.socket.parent, state / "images"]
    paths = [p for p in everything_below(*mine) if p.suffix != ".ext4"]
    for sandbox in (first, second):
        paths += [
            driver.directory(sandbox) / n for n in ("record.json", "ledger.jsonl")
        ]
    assert len(paths) > 6
    assert all(path.exists() for path in paths), paths
    assert openable(driver.machine_pid(first), paths) == {}
