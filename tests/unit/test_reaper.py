"""What is left behind to the driver is reaped, what somebody waits for is not. In a process of its own: it becomes a
subreaper.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import ctypes, os, subprocess, sys, time
from pathlib import Path
from vmdriver.host import reaper

qemu = sys.argv[1]

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
    found, end = 0, time.monotonic() + 10
    while found < wanted and time.monotonic() < end:
        found += reaps.reap()
        time.sleep(0.01)
    return found

def ended(program):
    while Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)

parent = os.getpid()
reaper.inherit()
reaps = reaper.Reaper()
for name in ("true", qemu):
    waited_for = subprocess.Popen([name], start_new_session=True)
    ended(waited_for)
    assert reaps.reap() == 0, f"{name} is somebody's"
    assert waited_for.wait() == 0
    assert reaps.reap() == 0
    assert not reaps.is_to_look_again()
left_behind(True, "qemu-system-x86")
assert reaped(1) == 1, "the fork of a QEMU that is asked what it can do"
left_behind(False, "qemu-system-x86")
assert reaped(1) == 1, "a machine's QEMU"
"""


def test_what_is_left_behind_is_reaped_and_what_is_waited_for_is_not(
    tmp_path: Path,
) -> None:
    qemu = shutil.copy("/bin/true", tmp_path / "qemu-system-x86_64")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(qemu)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
