"""Sandboxes that are put away with their memory and come back, on real machines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tests.fakes.serve import SERVE
from tests.fakes.waiting import until
from tests.system.machines import Driver, Host
from tests.system.workloads import running, suspending
from vmdriver.hypervisor.questions import verdict
from vmdriver.lifecycle.launch.translation import MOST_MIB
from vmdriver.storage.layout import Layout

UNBOUNDED = [
    *(sys.executable, str(Path(__file__).with_name("unbounded_driver.py"))),
    "serve",
]
COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /tmp/counter; sleep 0.1; done"


def test_a_sandbox_goes_on_where_it_was(driver: Driver) -> None:
    sandbox = suspending(driver, command=["/bin/sh", "-c", COUNTER])
    shell = driver.gateway.shell
    shell(sandbox, "echo kept > /dev/shm/note")
    before = int(shell(sandbox, "cat /tmp/counter"))
    driver.stop(sandbox)
    assert driver.condition(sandbox)[:2] == ("Suspended=True", "Suspended")
    assert held_on_host(driver, sandbox) == [], "no tap, no table, no machine"
    memory = driver.directory(sandbox) / "suspended" / "memory"
    assert memory.stat().st_uid == 0, "no other machine's QEMU can read it"
    assert memory.stat().st_mode & 0o077 == 0
    driver.restart()
    assert driver.condition(sandbox)[:2] == ("Suspended=True", "Suspended")
    driver.start_sandbox(sandbox)
    driver.wait(sandbox, "Running")
    assert shell(sandbox, "cat /dev/shm/note") == "kept\n"
    assert int(shell(sandbox, "cat /tmp/counter")) > before
    assert len(driver.gateway.session(sandbox).hellos) == 1, (
        "the supervisor never ended"
    )
    directory = driver.directory(sandbox)
    assert not (directory / "suspended").exists(), "a checkpoint is used once"
    driver.operate("suspend", sandbox)
    assert driver.condition(sandbox)[:2] == ("Suspended=True", "Suspended")
    events = driver.operate("resume", sandbox)
    reasons = [event["reason"] for event in events]
    assert "Restored" in reasons, events
    assert reasons[-1] == "GatewaySaysStopped", (
        "an operator's resume is not a gateway's"
    )
    assert shell(sandbox, "cat /dev/shm/note") == "kept\n"
    assert driver.record(sandbox)["last_restore"]["load"] > 0
    assert driver.delete(sandbox)


def held_on_host(driver: Driver, sandbox: str) -> list[str]:
    """What the ledger says is held beyond address and disk."""
    entries = driver.inspect(sandbox)["ledger"]
    return [e["key"] for e in entries if e["scope"] != "persistent"]


def test_snapshots_are_returned_to_and_forked(driver: Driver) -> None:
    before = driver.layers()
    sandbox = driver.create(command=["/bin/sh", "-c", COUNTER])
    driver.wait(sandbox, "Running")
    shell = driver.gateway.shell
    shell(sandbox, "echo one > /sandbox/file; echo one > /dev/shm/note; sync")
    driver.operate("snapshot", "create", sandbox, "one")
    at_one = int(shell(sandbox, "cat /tmp/counter"))
    shell(sandbox, "echo two > /sandbox/file; echo two > /dev/shm/note; rm /bin/true")
    driver.operate("snapshot", "create", sandbox, "two", "--disk-only")
    shell(sandbox, "echo three > /sandbox/file")
    found = driver.cli("snapshot", "ls", sandbox)
    assert [(s["name"], s["memory"]) for s in found] == [("one", True), ("two", False)]
    assert found[0]["memory_bytes"] < 300 * 2**20, "zero pages are not stored"
    for _ in range(2):
        driver.operate("snapshot", "restore", sandbox, "one")
        assert shell(sandbox, "cat /sandbox/file /dev/shm/note") == "one\none\n"
        assert int(shell(sandbox, "cat /tmp/counter")) < at_one + 100
        shell(sandbox, "echo changed > /sandbox/file; /bin/true; sync")
    fork = fork_of(driver, sandbox, "two")
    assert shell(fork, "cat /sandbox/file") == "two\n"
    assert shell(fork, "test -e /dev/shm/note || echo none") == "none\n", "cold"
    driver.operate("snapshot", "restore", sandbox, "two")
    assert shell(sandbox, "cat /sandbox/file") == "two\n"
    ids = [shell(b, "cat /etc/machine-id; hostname") for b in (sandbox, fork)]
    assert ids[0] != ids[1]
    assert driver.delete(sandbox), "the fork needs its layers and keeps them"
    shell(fork, "cat /sandbox/file /usr/bin/* > /dev/null")
    driver.stop(fork)
    assert driver.delete(fork)
    assert driver.layers() == before


def fork_of(driver: Driver, sandbox: str, name: str) -> str:
    return running(driver, {"from_snapshot": f"{sandbox}/{name}"})


def test_memory_comes_back_whether_libvirt_asks_about_the_cpu_or_not(
    driver: Driver,
) -> None:
    """Suspended in one way, resumed in the other, both ways; another driver takes the machine up in between."""
    results = Layout(driver.host.state).questions
    until(lambda: verdict.load(results), "the driver has tried it")
    found = verdict.load(results)["qemu"]
    assert found.spared, found.reason
    sandbox = suspending(driver, command=["/bin/sh", "-c", COUNTER])
    shell = driver.gateway.shell
    shell(sandbox, "echo kept > /dev/shm/note")
    try:
        for spared in (False, True):
            driver.stop(sandbox)
            driver.kill()
            verdict.store(results, "qemu", found.model_copy(update={"spared": spared}))
            driver.start()
            driver.start_sandbox(sandbox)
            driver.wait(sandbox, "Running")
            domain = driver.record(sandbox)["plan"]["domain"]
            definition = driver.host.state / f"libvirt/run/qemu/{domain}.xml"
            told = "<qemu:del capability='cpu-unavailable-features'/>"
            assert (told in definition.read_text()) is spared
            driver.restart()
            assert shell(sandbox, "cat /dev/shm/note") == "kept\n"
    finally:
        verdict.store(results, "qemu", found)
    assert len(driver.gateway.session(sandbox).hellos) == 1
    assert driver.delete(sandbox)


def test_memory_of_a_machine_without_a_bound_of_translated_code_comes_back_with_one(
    new_driver: Callable[..., Driver], fresh_host: Host
) -> None:
    """A suspended sandbox's and a template's; and back to a driver that knows of none."""
    driver = new_driver(host=fresh_host, command=UNBOUNDED)
    sandbox = suspending(driver, command=["/bin/sh", "-c", COUNTER])
    shell = driver.gateway.shell
    shell(sandbox, "echo kept > /dev/shm/note")
    driver.wait_for_template()
    assert translated(driver, sandbox) == []
    driver.stop(sandbox)
    driver.kill()
    driver.command = list(SERVE)
    driver.start()
    driver.start_sandbox(sandbox)
    driver.wait(sandbox, "Running")
    assert translated(driver, sandbox) == [f"tcg,tb-size={MOST_MIB}"]
    fork = driver.create()
    assert driver.plan(fork)["template"], "it has booted"
    assert translated(driver, fork) == [f"tcg,tb-size={MOST_MIB}"]
    driver.stop(sandbox)
    driver.kill()
    driver.command = UNBOUNDED
    driver.start()
    driver.start_sandbox(sandbox)
    driver.wait(sandbox, "Running")
    assert shell(sandbox, "cat /dev/shm/note") == "kept\n"
    assert shell(fork, "echo there") == "there\n", "it was adopted"
    for one in (sandbox, fork):
        assert driver.delete(one)


def translated(driver: Driver, sandbox: str) -> list[str]:
    """What QEMU was told of it."""
    words = Path(f"/proc/{driver.machine_pid(sandbox)}/cmdline").read_text().split("\0")
    return [word for word in words if "tb-size" in word]
