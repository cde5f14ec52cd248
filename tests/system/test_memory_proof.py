"""What is promised of kept memory, shown on real machines: one unbroken time, nothing lived twice, nobody left waiting."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.waiting import until
from tests.system.machines import Driver, Host, in_background
from tests.system.stage import WITHOUT_TEMPLATES
from tests.system.workloads import (
    CHAIN,
    HARD,
    HOLDER,
    chain_of,
    check_thawed,
    command,
    suspending,
)

PERMISSION = Path("/proc/sys/vm/unprivileged_userfaultfd")
LIVE = ("live", "live-again")
WRITTEN = "while [ ! -s /sandbox/chain ]; do sleep 0.1; done"


def suspensions_and_returns_leave_one_unbroken_chain(
    driver: Driver, suspensions: int, returns: int
) -> None:
    sandbox = suspending(driver, command=command(CHAIN))
    driver.gateway.shell(sandbox, WRITTEN)
    length = 0
    for _ in range(suspensions):
        driver.stop(sandbox)
        driver.start_sandbox(sandbox)
        driver.wait(sandbox, "Running")
        links = chain_of(driver, sandbox)
        assert len(links) > length, "the workload goes on"
        length = len(links)
    for number in range(returns):
        driver.snapshot(sandbox, f"s{number}")
        at = len(chain_of(driver, sandbox))
        time.sleep(0.5)
        before = len(chain_of(driver, sandbox))
        driver.go_back(sandbox, f"s{max(0, number - 1)}")
        after = len(chain_of(driver, sandbox))
        assert after < before or number == 0 or at > after
    assert len(driver.gateway.session(sandbox).hellos) == 1, (
        "the supervisor never ended"
    )
    assert driver.delete(sandbox)


def forks_each_run_a_chain_of_their_own(driver: Driver, forks: int) -> None:
    first = driver.create(command=command(CHAIN))
    driver.wait(first, "Running")
    for number in range(forks):
        sandbox = driver.create(name=f"f{number}", command=command(CHAIN))
        driver.gateway.shell(sandbox, f"{WRITTEN}; sleep 0.3")
        links = chain_of(driver, sandbox)
        assert abs(links[0][1] - time.time()) < 30, "the clock is the host's"
        assert driver.plan(sandbox)["template"]
        assert driver.delete(sandbox)
    assert len(chain_of(driver, first)) > 100, "the first one never noticed"


@pytest.mark.soak
def test_many_suspensions_and_returns_leave_one_unbroken_chain(driver: Driver) -> None:
    suspensions_and_returns_leave_one_unbroken_chain(driver, 20, 5)


@pytest.mark.soak
def test_many_forks_each_run_a_chain_of_their_own(driver: Driver) -> None:
    forks_each_run_a_chain_of_their_own(driver, 20)


def test_chains_stay_whole_and_after_a_minute_the_clock_is_right_before_the_workload_runs(
    driver: Driver,
) -> None:
    """While one sandbox is away for a minute, others are suspended, return and are forked."""
    sandbox = suspending(driver, command=command(CHAIN))
    driver.gateway.shell(sandbox, WRITTEN)
    driver.stop(sandbox)
    away = time.monotonic()
    suspensions_and_returns_leave_one_unbroken_chain(driver, 10, 3)
    forks_each_run_a_chain_of_their_own(driver, 8)
    time.sleep(max(0.0, away + 60 - time.monotonic()))
    driver.start_sandbox(sandbox)
    driver.wait(sandbox, "Running")
    time.sleep(1)
    the_clock_is_right(driver, sandbox)


def the_clock_is_right(driver: Driver, sandbox: str) -> None:
    """It was from the first link on that was made after the longest pause."""
    links = chain_of(driver, sandbox)
    gaps = [(b[1] - a[1], b) for a, b in itertools.pairwise(links)]
    longest, first = max(gaps)
    assert longest > 60, "the suspension is to be seen"
    begun = time.time()
    steady = float(
        driver.gateway.shell(
            sandbox, "python3 -c 'import time; print(time.monotonic())'"
        )
    )
    middle = (begun + time.time()) / 2
    error_s = first[1] - (middle - (steady - first[2]))
    uncertain_s = (time.time() - begun) / 2
    print(f"clock error {error_s:+.3f} s, known to {uncertain_s:.3f} s")
    assert abs(error_s) <= 0.5 + uncertain_s


def test_both_ends_of_a_connection_know_within_two_seconds(driver: Driver) -> None:
    sandbox = suspending(driver)
    shell, gateway = driver.gateway.shell, driver.gateway
    port = gateway.port
    shell(
        sandbox,
        f"cat > /tmp/hold.py <<'X'\n{HOLDER}\nX\n(python3 /tmp/hold.py {port} {sandbox} >/dev/null 2>&1 &) ; sleep 1",
    )
    shell(sandbox, "test ! -e /tmp/held")
    driver.stop(sandbox)
    assert gateway.held_ends(sandbox, 2), "the host's end is told at once"
    driver.start_sandbox(sandbox)
    driver.wait(sandbox, "Running")
    thawed = time.monotonic()
    got = shell(
        sandbox,
        "for i in $(seq 40); do [ -e /tmp/held ] && break; sleep 0.05; done; cat /tmp/held",
    )
    assert "ConnectionAborted" in got or "ConnectionReset" in got, got
    assert time.monotonic() - thawed < 4, "two seconds, and the time of asking"


@contextmanager
def permitted() -> Iterator[None]:
    """QEMU, whose user may nothing, may have its guest's memory protected. It is the whole host's."""
    before = PERMISSION.read_text()
    try:
        PERMISSION.write_text("1")
    except OSError as error:
        pytest.skip(f"the kernel's settings cannot be changed here: {error}")
    try:
        yield
    finally:
        PERMISSION.write_text(before)


def test_a_live_snapshot_is_of_one_moment_of_memory_and_disk(
    new_driver: Callable[..., Driver], fresh_host: Host
) -> None:
    with permitted():
        options = ["--live-snapshots", "true", *WITHOUT_TEMPLATES]
        driver = new_driver(*options, host=fresh_host)
        sandbox = driver.create(command=command(HARD))

        def told() -> int:
            return int(driver.gateway.shell(sandbox, "cat /dev/shm/told || echo 0"))

        def goes_on(since: int) -> None:
            until(lambda: told() > since + 1, f"it stands still at {since}", 60)
            torn = driver.gateway.shell(sandbox, "cat /dev/shm/torn || echo whole")
            assert torn == "whole\n"

        goes_on(1)
        for number in (signal.SIGKILL, signal.SIGTERM):
            kill_while_it_is_written(driver, sandbox, number)
            goes_on(told())
        moments = {}
        for name in LIVE:
            before = told()
            driver.snapshot(sandbox, name)
            moments[name] = before
        assert driver.snapshots(sandbox) == list(LIVE), "and none of the killed driver"
        for entry in driver.record(sandbox)["snapshots"]:
            steps = {step["name"] for step in entry["steps"]}
            assert "write" in steps, "it was written while the machine stood still"
        goes_on(told())
        for name in LIVE:
            driver.go_back(sandbox, name)
            driver.wait(sandbox, "Running")
            goes_on(moments[name])
        assert driver.delete(sandbox)


def kill_while_it_is_written(driver: Driver, sandbox: str, number: int) -> None:
    """The driver. Killed: QEMU writes on, for nobody, and the next one ends that; told to end: it
    does so itself.
    """
    part = driver.directory(sandbox) / "capture.part"

    def begun() -> bool:
        return any(p.stat().st_size > 2**20 for p in part.glob("*.stream"))

    asked = in_background(lambda: driver.snapshot(sandbox, "cut-off"))
    until(begun, "nothing is written", 20, 0.005)
    driver.kill(number)
    asked.join()
    driver.start()
    driver.wait(sandbox, "Running")
    check_thawed(driver, sandbox)
    assert not part.exists()
