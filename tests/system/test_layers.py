"""The driver is killed between QEMU's switch to a new layer and libvirt's note of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.serve import SERVE
from tests.system.machines import Driver, in_background
from tests.system.workloads import check_whole, marked

pytestmark = pytest.mark.timeout(400)  # two boots and a restore, on a busy host
CUT_OFF = [sys.executable, str(Path(__file__).with_name("cut_off_driver.py"))]


@pytest.mark.parametrize("how_far", ["switched", "opened"])
def test_what_is_written_to_a_layer_that_libvirt_does_not_know_is_kept(
    new_driver: Callable[..., Driver], how_far: str
) -> None:
    driver = new_driver(command=[*CUT_OFF, how_far, "serve"])
    sandbox = marked(driver)
    assert driver.process is not None
    in_background(lambda: driver.snapshot(sandbox, "lost"))
    driver.process.wait(60)
    layers = driver.host.state / "layers"
    (note,) = layers.rglob(f"*.{how_far}")
    note.unlink()
    driver.command = list(SERVE)
    driver.start()
    check_whole(driver, sandbox)
    links = Path(f"/proc/{driver.machine_pid(sandbox)}/fd").iterdir()
    files = [str(link.readlink()) for link in links]
    assert not [f for f in files if "/layers/" in f and f.endswith(" (deleted)")]
    shell = driver.gateway.shell
    shell(sandbox, "echo one > /sandbox/one; sync")
    driver.snapshot(sandbox, "s")
    shell(sandbox, "echo two > /sandbox/two; sync")
    driver.stop(sandbox)
    driver.start_sandbox(sandbox)
    check_whole(driver, sandbox)
    driver.suspend(sandbox)
    driver.resume(sandbox, cold=True)
    driver.gateway.wait_hello(sandbox, 2)
    everything = "cat /sandbox/note /sandbox/one /sandbox/two"
    assert shell(sandbox, everything) == "disk\none\ntwo\n"
