"""Sandboxes that are put away with their memory and come back, on real machines."""

from __future__ import annotations

from tests.system.machines import Driver
from tests.system.workloads import running, suspending

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /tmp/counter; sleep 0.1; done"


def test_a_sandbox_goes_on_where_it_was(driver: Driver) -> None:
    box = suspending(driver, command=["/bin/sh", "-c", COUNTER])
    shell = driver.gateway.shell
    shell(box, "echo kept > /dev/shm/note")
    before = int(shell(box, "cat /tmp/counter"))
    driver.stop(box)
    assert driver.condition(box)[:2] == ("Suspended=True", "Suspended")
    assert held_on_host(driver, box) == [], "no tap, no table, no machine"
    memory = driver.directory(box) / "suspended" / "memory"
    assert memory.stat().st_uid == 0, "no other machine's QEMU can read it"
    assert memory.stat().st_mode & 0o077 == 0
    driver.restart()
    assert driver.condition(box)[:2] == ("Suspended=True", "Suspended")
    driver.start_sandbox(box)
    driver.wait(box, "Running")
    assert shell(box, "cat /dev/shm/note") == "kept\n"
    assert int(shell(box, "cat /tmp/counter")) > before
    assert len(driver.gateway.session(box).hellos) == 1, "the supervisor never ended"
    directory = driver.directory(box)
    assert not (directory / "suspended").exists(), "a checkpoint is used once"
    driver.operate("suspend", box)
    assert driver.condition(box)[:2] == ("Suspended=True", "Suspended")
    events = driver.operate("resume", box)
    reasons = [event["reason"] for event in events]
    assert "Restored" in reasons, events
    assert reasons[-1] == "GatewaySaysStopped", (
        "an operator's resume is not a gateway's"
    )
    assert shell(box, "cat /dev/shm/note") == "kept\n"
    assert driver.record(box)["last_restore"]["load"] > 0
    assert driver.delete(box)


def held_on_host(driver: Driver, box: str) -> list[str]:
    """What the ledger says is held beyond address and disk."""
    entries = driver.inspect(box)["ledger"]
    return [e["key"] for e in entries if e["scope"] != "persistent"]


def test_snapshots_are_returned_to_and_forked(driver: Driver) -> None:
    before = driver.layers()
    box = driver.create(command=["/bin/sh", "-c", COUNTER])
    driver.wait(box, "Running")
    shell = driver.gateway.shell
    shell(box, "echo one > /sandbox/file; echo one > /dev/shm/note; sync")
    driver.operate("snapshot", "create", box, "one")
    at_one = int(shell(box, "cat /tmp/counter"))
    shell(box, "echo two > /sandbox/file; echo two > /dev/shm/note; rm /bin/true")
    driver.operate("snapshot", "create", box, "two", "--disk-only")
    shell(box, "echo three > /sandbox/file")
    found = driver.cli("snapshot", "ls", box)
    assert [(s["name"], s["memory"]) for s in found] == [("one", True), ("two", False)]
    assert found[0]["memory_bytes"] < 300 * 2**20, "zero pages are not stored"
    for _ in range(2):
        driver.operate("snapshot", "restore", box, "one")
        assert shell(box, "cat /sandbox/file /dev/shm/note") == "one\none\n"
        assert int(shell(box, "cat /tmp/counter")) < at_one + 100
        shell(box, "echo changed > /sandbox/file; /bin/true; sync")
    fork = fork_of(driver, box, "two")
    assert shell(fork, "cat /sandbox/file") == "two\n"
    assert shell(fork, "test -e /dev/shm/note || echo none") == "none\n", "cold"
    driver.operate("snapshot", "restore", box, "two")
    assert shell(box, "cat /sandbox/file") == "two\n"
    ids = [shell(b, "cat /etc/machine-id; hostname") for b in (box, fork)]
    assert ids[0] != ids[1]
    assert driver.delete(box), "the fork needs its layers and keeps them"
    shell(fork, "cat /sandbox/file /usr/bin/* > /dev/null")
    driver.stop(fork)
    assert driver.delete(fork)
    assert driver.layers() == before


def fork_of(driver: Driver, box: str, name: str) -> str:
    return running(driver, {"from_snapshot": f"{box}/{name}"})
