"""What bounds a workload inside its guest."""

from __future__ import annotations

from collections.abc import Callable

from tests.system.machines import Driver

FORK_BOMB = """
import os, sys, time
os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
made = 0
try:
    while made < 2000:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        made += 1
except OSError as error:
    print(made, error.errno)
else:
    print(made, 0)
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
"""
VIEW = """
cat /sys/fs/cgroup/pids.max; cat /proc/self/cgroup
awk '$5 == "/sys/fs/cgroup" {print $4}' /proc/self/mountinfo; ls /sys/fs/cgroup | grep -c workload
"""


def test_the_number_of_processes_is_bounded_of_cold_and_forked_machines(
    booting: Driver, new_driver: Callable[..., Driver]
) -> None:
    booting.options += ["--pids-max", "200"]
    booting.restart()
    cold = booting.create(name="cold")
    booting.wait(cold, "Running")
    shell = booting.gateway.shell
    # As the supervisor reads it, in the cgroup that it is in.
    assert shell(cold, VIEW + "true").split() == ["200", "0::/", "/", "0"]
    made, error = booting.gateway.run(
        cold, "/usr/bin/setsid", "-w", "/usr/bin/python3", "-c", FORK_BOMB, "10001"
    ).stdout.split()
    assert 100 < int(made) < 200
    assert int(error) == 11, "EAGAIN"
    assert shell(cold, "echo alive") == "alive\n", "the supervisor goes on"
    # A template made with one limit serves a driver with another.
    driver = new_driver("--pids-max", "300")
    fork = driver.create(name="fork")
    driver.wait(fork, "Running")
    assert driver.plan(fork)["template"]
    assert shell(fork, VIEW + "true").split() == ["300", "0::/", "/", "0"]
    # The agent freezes what is below: the memory of a workload is still kept whole.
    driver.suspend(fork)
    driver.resume(fork)
    assert shell(fork, "cat /sys/fs/cgroup/pids.max") == "300\n"
