"""Sandboxes that are put away with their memory and come back, on real machines."""

from __future__ import annotations

import time

from google.protobuf import struct_pb2

from tests.system.conftest import Driver
from vmdriver._proto import compute_driver_pb2 as pb


def suspending(driver: Driver, **spec: object) -> str:
    """A running sandbox whose stop is a suspension."""
    config = struct_pb2.Struct()
    config.update({"on_stop": "suspend"})
    template = pb.DriverSandboxTemplate(image=driver.host.image, driver_config=config)
    box = driver.create(template=template, **spec)
    driver.wait(box, "Running")
    return box


def test_a_sandbox_goes_on_where_it_was(new_driver) -> None:
    driver = new_driver("--log-level", "debug")
    counter = "i=0; while :; do i=$((i+1)); echo $i > /tmp/counter; sleep 0.1; done"
    box = suspending(driver, command=["/bin/sh", "-c", counter])
    shell = driver.gateway.shell
    shell(box, "echo kept > /dev/shm/note")
    before = int(shell(box, "cat /tmp/counter"))
    begun = time.monotonic()
    driver.stop(box)
    print("stop", time.monotonic() - begun)
    assert driver.condition(box)[:2] == ("Suspended=True", "Suspended")
    begun = time.monotonic()
    driver.start_sandbox(box)
    driver.wait(box, "Running")
    print("start", time.monotonic() - begun)
    assert shell(box, "cat /dev/shm/note") == "kept\n"
    assert int(shell(box, "cat /tmp/counter")) > before
    begun = time.monotonic()
    print(shell(box, "date; dmesg | tail -5; ip neigh"), time.monotonic() - begun)
    print(
        [
            line
            for line in driver.log.read_text().splitlines()
            if "estored" in line or "uspended" in line or "hygiene" in line
        ]
    )
    print(driver.log.read_text()[-9000:])
    assert len(driver.gateway.session(box).hellos) == 1
    assert driver.delete(box)
