"""Volumes on real machines: what a guest writes, another one finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.system.machines import Driver
from tests.system.workloads import running

PLACE = "/data/some/place"


def with_volume(driver: Driver, **more: Any) -> str:
    volume = {"name": "data", "mount": PLACE, "size_mib": 64, **more}
    return running(driver, {"volumes": [volume]})


def holders(driver: Driver) -> list[str]:
    (found,) = driver.cli("volume", "ls")
    return list(found["sandboxes"])


def test_a_volume_outlives_sandboxes_and_goes_on_with_kept_memory(
    booting: Driver, tmp_path: Path
) -> None:
    driver, shell = booting, booting.gateway.shell
    first = with_volume(driver)
    assert shell(first, f"stat -c '%U %a' {PLACE}") == "sandbox 755\n"
    options = shell(first, f"grep {PLACE} /proc/mounts").split()[3].split(",")
    assert {"rw", "nosuid", "nodev"} <= set(options)
    shell(first, f"echo written > {PLACE}/one")
    boot = shell(first, "cat /proc/sys/kernel/random/boot_id")
    driver.operate("suspend", first)
    assert holders(driver) == [first]
    driver.restart()
    driver.operate("resume", first)
    assert shell(first, "cat /proc/sys/kernel/random/boot_id") == boot, (
        "its memory goes on"
    )
    # Not synced: a stop puts it away whole, or nobody could mount it only to read.
    shell(first, f"echo more > {PLACE}/two")
    driver.stop(first)
    assert driver.delete(first)
    assert holders(driver) == []
    driver.operate("volume", "grow", "data", "--size-mib", "96")
    second = with_volume(driver, read_only=True)
    assert shell(second, f"cat {PLACE}/one {PLACE}/two") == "written\nmore\n"
    assert "Read-only" in shell(second, f"touch {PLACE}/x 2>&1 || true")
    assert driver.delete(second)
    image = tmp_path / "image"
    driver.operate("volume", "export", "data", str(image))
    assert image.stat().st_size == 96 * 2**20
    driver.operate("volume", "rm", "data")
    driver.operate("volume", "import", "data", str(image))
    third = with_volume(driver)
    blocks = shell(third, f"df -m {PLACE} | tail -1").split()[1]
    assert int(blocks) > 70, "its file system takes what it has become"
    assert shell(third, f"cat {PLACE}/one") == "written\n"
    assert driver.delete(third)
    driver.operate("volume", "rm", "data")
    assert driver.cli("volume", "ls") == []
