"""Volumes on real machines: what a guest writes, another one finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.system.machines import Driver
from tests.system.test_disk_moment import run
from tests.system.workloads import running

PLACE = "/data/some/place"


def with_volume(driver: Driver, **more: Any) -> str:
    volume = {"name": "data", "mount": PLACE, "size_mib": 64, **more}
    return running(driver, {"volumes": [volume]})


def holders(driver: Driver) -> list[str]:
    (found,) = driver.cli("volume", "ls")
    return list(found["sandboxes"])


COUNT = f"""
n=0
while :; do n=$((n+1)); echo $n >> /sandbox/n; echo $n >> {PLACE}/n; done
"""
"""On the disk, then on the volume, and it never asks for anything to be on either."""


def last(driver: Driver, sandbox: str, folder: str) -> int:
    return int(driver.gateway.shell(sandbox, f"tail -1 {folder}/n"))


def goes_back_to_a_moment(driver: Driver, sandbox: str, folder: Path) -> None:
    """A snapshot of a machine that writes to its disk and its volume has both of one moment."""
    shell = driver.gateway.shell
    shell(
        sandbox,
        f"nohup sh -c '{COUNT}' > /dev/null 2>&1 & while [ ! -s {PLACE}/n ]; do sleep 0.1; done",
    )
    before = last(driver, sandbox, PLACE)
    driver.operate("snapshot", "create", sandbox, "kept", "--disk-only", "--volumes")
    after = last(driver, sandbox, PLACE)
    shell(sandbox, f"echo lost > {PLACE}/two")
    (entry,) = driver.cli("snapshot", "ls", sandbox)
    assert [each["name"] for each in entry["volumes"]] == ["data"]
    assert 0 < entry["volumes"][0]["stored_bytes"] < 48 * 2**20, "it is sparse"
    image = folder / "of-a-moment"
    out = "volume", "export", "data", str(image), "--snapshot", f"{sandbox}/kept"
    driver.operate(*out)
    run("e2fsck", "-p", image, fine=(0, 1))
    assert run("debugfs", "-R", "cat two", image) == "more\n"
    driver.operate("snapshot", "restore", sandbox, "kept", "--volumes")
    disk, volume = last(driver, sandbox, "/sandbox"), last(driver, sandbox, PLACE)
    assert disk - volume in {0, 1}
    assert before <= volume <= after
    assert shell(sandbox, f"cat {PLACE}/one {PLACE}/two") == "written\nmore\n"
    driver.operate("snapshot", "rm", sandbox, "kept")
    assert not list((driver.host.state / "layers").rglob("*.raw"))


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
    goes_back_to_a_moment(driver, first, tmp_path)
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
