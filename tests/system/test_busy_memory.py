"""Memory that is kept of a guest that is at work is all of one moment: its kernel finds nothing broken afterwards.

What a workload holds itself is a small part of that (test_memory_proof.py): lists of pages, of processes and of inodes change
with each call. Memory that had been written while such a guest ran had half of them end within seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.machines import Driver

AT_WORK = """while :; do
dd if=/dev/urandom of=/dev/shm/a bs=64k count=80 2>/dev/null
cp /dev/shm/a /sandbox/b; sync; cmp /dev/shm/a /sandbox/b || touch /sandbox/differs; rm /sandbox/b; echo >> /sandbox/rounds
done"""
BROKEN = "Oops:\\|BUG:\\|EXT4-fs error\\|list_.* corruption\\|general protection"
ROUNDS = 3


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_a_guest_at_work_is_whole_each_time_it_comes_back(
    new_driver: Callable[..., Driver], number: int
) -> None:
    driver = new_driver()
    sandbox = driver.create(name=f"busy-{number}")
    driver.wait(sandbox, "Running")
    shell = driver.gateway.shell
    shell(sandbox, f"({AT_WORK}) > /dev/null 2>&1 & echo begun")
    for _ in range(ROUNDS):
        more = "n=$(wc -l < /sandbox/rounds); until [ $(wc -l < /sandbox/rounds) -gt $n ]; do sleep 0.1; done"
        shell(sandbox, f"until [ -s /sandbox/rounds ]; do sleep 0.1; done; {more}")
        driver.suspend(sandbox)
        driver.resume(sandbox)
        shell(sandbox, more)
        assert shell(sandbox, f"dmesg | grep -a '{BROKEN}' || true") == ""
        assert shell(sandbox, "ls /sandbox/differs 2>/dev/null || true") == ""
    driver.snapshot(sandbox, "at-work")
    driver.go_back(sandbox, "at-work")
    shell(sandbox, more)
    assert shell(sandbox, f"dmesg | grep -a '{BROKEN}' || true") == ""
    assert driver.delete(sandbox)
