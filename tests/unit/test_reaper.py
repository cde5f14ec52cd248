"""What is left behind to the driver is reaped, what somebody waits for is not. In a process of its own: it becomes a
subreaper.
"""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes, os, subprocess, time
from pathlib import Path
from vmdriver.host import reaper

def left_behind(leads, name):
    # As whoever daemonises: its parent ends first.
    reading, writing = os.pipe()
    if (first := os.fork()) == 0:
        if os.fork() == 0:
            os.setsid()
            if not leads and os.fork():
                os._exit(0)
            ctypes.CDLL(None).prctl(15, name.encode(), 0, 0, 0)
            os.write(writing, b"x")
            while os.getppid() != parent:
                time.sleep(0.01)
            os._exit(0)
        os.read(reading, 1)
        os._exit(0)
    os.waitpid(first, 0)

def reaped(wanted):
    found, end = 0, time.monotonic() + 5
    while found < wanted and time.monotonic() < end:
        found += reaper.reap()
        time.sleep(0.01)
    return found

parent = os.getpid()
reaper.inherit()
waited_for = subprocess.Popen(["true"], start_new_session=True)
while Path(f"/proc/{waited_for.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
    time.sleep(0.01)
assert reaper.reap() == 0
left_behind(True, "qemu-system-x86")
assert reaped(1) == 1, "the fork of a QEMU that is asked what it can do"
left_behind(False, "qemu-system-x86")
assert reaped(1) == 1, "a machine's QEMU"
assert waited_for.wait() == 0
assert not [pid for pid in reaper._children() if reaper._is_orphaned_zombie(pid)]
"""


def test_what_is_left_behind_is_reaped_and_what_is_waited_for_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
