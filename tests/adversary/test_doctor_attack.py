"""`vmdriver doctor --attack` on a real machine: what its run has of the wall holds, and where something is weakened it says so."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.waiting import until
from tests.system.machines import Driver


@pytest.fixture
def sandbox(driver: Driver) -> str:
    sandbox = driver.create()
    driver.wait(sandbox, "Running")
    return sandbox


def attacked(driver: Driver, sandbox: str) -> list[dict[str, Any]]:
    found = driver.cli("doctor", "--attack", sandbox)
    evidence = found["sandboxes"][sandbox]
    assert found["ok"] == (not failing(evidence))
    return list(evidence)


def failing(evidence: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Control -> what got too far."""
    found: dict[str, list[str]] = {}
    for one in evidence:
        if one["level"] == "fail":
            found.setdefault(one["control"], []).append(one["text"])
    return found


def lacking(driver: Driver, sandbox: str) -> set[str]:
    """Parts that this host could not give the run."""
    parts = {"uid", "namespace", "box", "seccomp", "limits"}
    return parts - set(driver.plan(sandbox)["wall"])


def test_an_attack_gets_no_further_than_the_wall_that_the_run_has(
    driver: Driver, sandbox: str
) -> None:
    found = attacked(driver, sandbox)
    assert set(failing(found)) <= lacking(driver, sandbox), failing(found)
    assert {one["control"] for one in found} >= {
        *("uid", "namespace", "box", "seccomp", "limits", "sealed-memory"),
        *("cgroup", "firewall"),
    }
    driver.wait(sandbox, "Running")


@pytest.fixture
def namesake(driver: Driver, sandbox: str) -> Iterator[int]:
    """A process with the machine's user; its uid."""
    user = driver.plan(sandbox)["user"]
    words = ["setpriv", f"--reuid={user['uid']}", f"--regid={user['gid']}"]
    process = subprocess.Popen([*words, "--clear-groups", "sleep", "600"])
    status = Path(f"/proc/{process.pid}/status")
    until(lambda: f"Uid:\t{user['uid']}" in status.read_text())
    yield int(user["uid"])
    process.kill()
    process.wait()


def test_a_user_that_is_not_the_machines_alone_is_noticed(
    driver: Driver, sandbox: str, namesake: int
) -> None:
    assert namesake > 0
    found = failing(attacked(driver, sandbox))
    assert set(found) - lacking(driver, sandbox) == {"uid"}, found


def test_a_driver_that_restores_no_rules_is_noticed_and_does_when_it_goes_on(
    driver: Driver, sandbox: str
) -> None:
    assert driver.process is not None
    driver.process.send_signal(signal.SIGSTOP)
    try:
        found = failing(attacked(driver, sandbox))
    finally:
        driver.process.send_signal(signal.SIGCONT)
    assert set(found) - lacking(driver, sandbox) == {"firewall"}, found
    until(lambda: "firewall" not in failing(attacked(driver, sandbox)), limit_s=30)
