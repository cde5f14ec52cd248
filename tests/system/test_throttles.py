"""What a machine may ask of the host's disks and network, on real machines that go on from memory."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable

import pytest
from google.protobuf import struct_pb2

from tests.fakes.waiting import until
from tests.system.machines import Driver
from vmdriver._proto import compute_driver_pb2 as pb

MIB_S, WRITTEN_MIB, MBIT_S = 2, 8, 40


def bounds(tap: str) -> list[str]:
    """Of what the machine is sent, and of what it sends."""
    here = ["tc", "qdisc", "show", "dev", tap]
    inside = ["tc", "-n", tap, "qdisc", "show", "dev", "out"]
    found = [
        subprocess.run(command, capture_output=True, text=True, check=True)
        for command in (here, inside)
    ]
    rates = (re.search(r"tbf.* rate (\S+)", done.stdout) for done in found)
    return [rate[1] if rate else "none" for rate in rates]


@pytest.mark.parametrize("pool", [0, 1])
def test_a_sandbox_has_the_limits_that_it_asked_for_from_its_first_byte_on(
    new_driver: Callable[..., Driver], pool: int
) -> None:
    driver = new_driver("--warm-pool", str(pool), "--max-net-mbit-s", "100")
    if pool:
        until(
            lambda: any(template.waiting for template in driver.templates()),
            lambda: driver.log.read_text()[-3000:],
            90,
        )
    config = struct_pb2.Struct()
    config.update({"max_disk_mib_s": MIB_S, "max_net_mbit_s": MBIT_S})
    template = pb.DriverSandboxTemplate(image=driver.host.image, driver_config=config)
    sandbox = driver.create(template=template)
    plan = driver.plan(sandbox)
    assert plan["template"] is not None
    tap = plan["network"]["lease"]["tap"]
    assert bounds(tap) == [f"{MBIT_S}Mbit"] * 2

    def seconds() -> float:
        begun = time.monotonic()
        write = f"dd if=/dev/zero of=/sandbox/much bs=1M count={WRITTEN_MIB}"
        driver.gateway.shell(sandbox, f"{write} conv=fsync 2>&1; rm /sandbox/much")
        return time.monotonic() - begun

    least = WRITTEN_MIB / MIB_S / 2  # it may save up a little
    assert seconds() > least
    driver.suspend(sandbox)
    driver.resume(sandbox)
    assert bounds(tap) == [f"{MBIT_S}Mbit"] * 2
    assert seconds() > least
    free = driver.create(name="free")
    assert bounds(driver.plan(free)["network"]["lease"]["tap"]) == ["100Mbit"] * 2
    for one in (sandbox, free):
        assert driver.delete(one)
