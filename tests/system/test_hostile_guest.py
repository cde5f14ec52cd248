"""A guest whose root says and answers garbage for as long as it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.system.machines import Driver
from tests.system.workloads import command

SCRIBBLER = r"""
import glob, os, signal, threading
def serial(path): return open(path).read().strip() if os.path.exists(path) else ""
block = next(b for b in glob.glob("/sys/block/vd*") if serial(b + "/serial") == "status")
disk = os.open("/dev/" + os.path.basename(block), os.O_WRONLY | os.O_SYNC)
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if open(f"/proc/{pid}/cmdline", "rb").read().startswith(b"agent\0"):
            os.kill(int(pid), signal.SIGKILL)
    except OSError:
        pass
def babble():
    port = next(p for p in glob.glob("/sys/class/virtio-ports/*") if serial(p + "/name") == "org.openshell.vmdriver.0")
    while True:
        try:
            channel = os.open("/dev/" + os.path.basename(port), os.O_RDWR)
            while True:
                os.write(channel, b"1 ok boot_id=\xc2\xb2 " + os.urandom(200) + b"\n")
        except OSError:
            pass
threading.Thread(target=babble, daemon=True).start()
words = [b"phase=waiting\n", b"phase=exited\0", b"phase=started\ncode=\xc2\xb2\ninit=" + b"9" * 309, b"", b"phase=probed\n"]
open("/sandbox/scribbling", "w").close()
while True:
    for word in words:
        os.pwrite(disk, word.ljust(4096, b"\0"), 0)
        os.pwrite(disk, os.urandom(4096), 0)
"""


def test_a_guest_that_says_garbage_is_adopted_stopped_and_deleted_in_time(
    new_driver: Callable[..., Driver],
) -> None:
    driver = new_driver("--stop-grace-s", "3")
    sandbox = driver.create(command=command(SCRIBBLER))
    driver.wait(sandbox, "Running")
    driver.gateway.shell(
        sandbox, "until [ -e /sandbox/scribbling ]; do sleep 0.1; done"
    )
    sleeps = driver.gateway.shell(sandbox, "cat /sys/power/mem_sleep")
    assert sleeps == "[s2idle]\n", "none from which nobody would wake the machine"
    pid = driver.machine_pid(sandbox)
    driver.restart()
    driver.wait(sandbox, "Running")
    assert driver.machine_pid(sandbox) == pid
    begun = time.monotonic()
    driver.stop(sandbox)
    assert time.monotonic() - begun < 3 + 15
    assert driver.condition(sandbox)[1] == "Stopped"
    driver.start_sandbox(sandbox)
    driver.gateway.wait_hello(sandbox, 2)
    driver.wait(sandbox, "Running")
    driver.gateway.shell(
        sandbox, "until [ -e /sandbox/scribbling ]; do sleep 0.1; done"
    )
    begun = time.monotonic()
    assert driver.delete(sandbox)
    assert time.monotonic() - begun < 30
    log = driver.log.read_text()
    assert len(log.splitlines()) < 200, "the guest does not fill the host's log"
