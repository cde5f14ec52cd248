"""What a QEMU that was taken over says to libvirt, which is inside the driver."""

from __future__ import annotations

import os
import signal
import time

from tests.adversary.inside import two_running
from tests.adversary.monitors import event, monitor_of, say
from tests.system.machines import Driver

EVENTS = (
    *(
        "RTC_CHANGE",
        "WATCHDOG",
        "BLOCK_IO_ERROR",
        "DEVICE_TRAY_MOVED",
        "BALLOON_CHANGE",
    ),
    *("VNC_CONNECTED", "SPICE_INITIALIZED", "DEVICE_DELETED", "NIC_RX_FILTER_CHANGED"),
    *("VSERPORT_CHANGE", "BLOCK_WRITE_THRESHOLD", "MIGRATION_PASS", "ACPI_DEVICE_OST"),
    *("JOB_STATUS_CHANGE", "MEMORY_FAILURE", "PR_MANAGER_STATUS_CHANGED", "MIGRATION"),
    *(
        "RDMA_GID_STATUS_CHANGED",
        "MEMORY_DEVICE_SIZE_CHANGE",
        "DUMP_COMPLETED",
        "SUSPEND",
    ),
)
"""That leave a machine running, or as good as."""
DATA = (
    None,
    7,
    -(2**70),
    "x" * 65536,
    [],
    [None],
    {},
    {"device": None, "id": [], "info": {}},
)
DEEP = b'{"event":"RTC_CHANGE","data":' + b"[" * 3_000_000 + b"]" * 3_000_000 + b"}\r\n"
STOP_S = 30.0


def test_nothing_that_a_qemu_says_ends_the_driver(driver: Driver) -> None:
    """isolation: libvirt followed the data of an event that had none, and the driver was gone: for all sandboxes, and
    again with each driver that began.
    """
    one, two = two_running(driver)
    pid = driver.machine_pid(one)
    os.kill(pid, signal.SIGSTOP)  # nothing of its own comes in between
    with monitor_of(pid) as monitor:
        say(monitor, b"".join(event(name) for name in EVENTS))
        assert driver.runs()
        shapes = [event(name, data=data) for name in EVENTS for data in DATA]
        say(monitor, b"".join(shapes))
        assert driver.runs()
        say(monitor, b'{"event": null}\r\n{"event": "STOP", "timestamp": []}\r\n')
        say(monitor, DEEP)
    begun = time.monotonic()
    driver.stop(two)
    assert time.monotonic() - begun < STOP_S
    assert driver.delete(one)
    assert driver.runs()
    assert driver.delete(two)


def test_a_driver_that_begins_beside_such_a_qemu_stays(driver: Driver) -> None:
    one = driver.create()
    driver.wait(one, "Running")
    driver.restart()
    driver.wait(one, "Running")
    with monitor_of(driver.machine_pid(one)) as monitor:
        say(monitor, event("RTC_CHANGE") + event("BALLOON_CHANGE"))
        say(monitor, event("VSERPORT_CHANGE", data=[]) + event("RTC_CHANGE", data=None))
    assert driver.delete(one)
    assert driver.runs()
