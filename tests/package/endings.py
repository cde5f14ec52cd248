"""What only a real systemd can show: each way in which it ends the driver, and that the machine goes on."""

from __future__ import annotations

import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

from services import Systemd, becomes, must, run, say

DROP_IN = Path("/run/systemd/system/vmdriver.service.d/test.conf")


def goes_on(
    systemd: Systemd,
    machines: Callable[[], list[int]],
    still: Callable[[], bool],
    act: Callable[[], object],
) -> None:
    """After `act`, another driver is ready, the machine is the same, and what runs in it has not stopped."""
    before, driver = machines(), systemd.main_pid()
    must(len(before) == 1, "one machine runs")
    act()
    becomes(
        lambda: systemd.main_pid() not in {0, driver} and systemd.is_ready(),
        "another driver is ready",
    )
    must(machines() == before, "the machine goes on")
    must(still(), "and so does what runs in it")


def of_the_driver(
    systemd: Systemd, machines: Callable[[], list[int]], still: Callable[[], bool]
) -> None:
    def unit(*words: str) -> Callable[[], object]:
        return lambda: run("systemctl", *words, "vmdriver.service")

    say("systemctl restart")
    goes_on(systemd, machines, still, unit("restart"))
    say("systemctl kill --kill-whom=main --signal=KILL")
    goes_on(systemd, machines, still, unit("kill", "--kill-whom=main", "--signal=KILL"))
    must(systemd.asked("NRestarts") == "1", "systemd has begun it again by itself")
    say("a driver that crashes")
    goes_on(
        systemd, machines, still, lambda: os.kill(systemd.main_pid(), signal.SIGSEGV)
    )
    say("systemctl stop, systemctl start")
    before = machines()
    run("systemctl", "stop", "vmdriver.service")
    must(systemd.asked("Result") == "success", "it has ended as it should")
    must(machines() == before, "the machine goes on without a driver")
    run("systemctl", "start", "vmdriver.service")
    must(systemd.is_ready() and still(), "the next one has it")
    stands_still(systemd, machines, still)


def stands_still(
    systemd: Systemd, machines: Callable[[], list[int]], still: Callable[[], bool]
) -> None:
    say("a driver that stands still, and WatchdogSec=5")
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text("[Service]\nWatchdogSec=5\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "vmdriver.service")
    must(systemd.asked("WatchdogUSec") == "5s", "it has five seconds")
    goes_on(
        systemd, machines, still, lambda: os.kill(systemd.main_pid(), signal.SIGSTOP)
    )
    said = systemd.journal()
    must("Watchdog timeout" in said, "the journal says why the one before was ended")
    must("Fatal Python error: Aborted" in said, "and where it stood")
    DROP_IN.unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", "vmdriver.service")
    must(systemd.asked("WatchdogUSec") == "1min", "it has a minute again")


def in_the_journal(systemd: Systemd) -> None:
    say("the journal")
    said = systemd.journal("--lines=200")
    must("serving" in said, "it has the driver's log")
    bundle = Path("/tmp/bundle.tar.gz")
    run("vmdriver", "doctor", "--bundle", str(bundle), check=False)
    with tarfile.open(bundle) as packed:
        names = [name for name in packed.getnames() if "driver" in Path(name).name]
        texts = [packed.extractfile(name).read().decode() for name in names]
    must(
        any("demo-0001" in text for text in texts), f"doctor --bundle packs it: {names}"
    )
    bundle.unlink()
