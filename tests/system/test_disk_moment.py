"""A snapshot of the disk alone, which does not pause the machine: what its programs had written, all of it and of one moment."""

from __future__ import annotations

from pathlib import Path

from tests.system.disks import run, whole
from tests.system.machines import Driver
from tests.system.workloads import command

PAGES = 64
WRITER = f"""
import os
wide, last, told = (os.open(p, os.O_RDWR | os.O_CREAT) for p in ("/sandbox/wide", "/sandbox/last", "/dev/shm/told"))
n = 0
while True:
    n += 1
    os.pwrite(wide, b"%020d" % n, n % {PAGES} * 4096)
    os.pwrite(last, b"%020d" % n, 0)
    os.pwrite(told, b"%020d" % n, 0)
"""
"""Never asks for anything to be on the disk: as after a power cut, its pages would be of any moments."""
ROUNDS = 4


def disk_of(driver: Driver, sandbox: str, name: str, folder: Path) -> Path:
    """The snapshot's disk, as a start would have it."""
    (entry,) = (e for e in driver.record(sandbox)["snapshots"] if e["name"] == name)
    assert entry["memory"] is None
    return whole(entry["layers"][-1], folder / f"{name}.ext4")


def numbers(disk: Path, file: str) -> list[int]:
    """At the beginning of each page of that file."""
    out = disk.with_suffix(f".{file}")
    run("debugfs", "-R", f"dump /sandbox/{file} {out}", disk)
    data = out.read_bytes()
    return [int(data[at : at + 20]) for at in range(0, len(data), 4096)]


def told(driver: Driver, sandbox: str) -> int:
    return int(driver.gateway.shell(sandbox, "cat /dev/shm/told"))


def test_a_snapshot_of_a_disk_that_is_written_to_is_of_one_moment(
    driver: Driver, tmp_path: Path
) -> None:
    sandbox = driver.create(command=command(WRITER))
    driver.gateway.shell(sandbox, "while [ ! -s /dev/shm/told ]; do sleep 0.1; done")
    moments = []
    for number in range(ROUNDS):
        before = told(driver, sandbox)
        driver.operate("snapshot", "create", sandbox, f"s{number}", "--disk-only")
        after = told(driver, sandbox)
        disk = disk_of(driver, sandbox, f"s{number}", tmp_path)
        newest = max(wide := numbers(disk, "wide"))
        assert sorted(wide) == list(range(newest - PAGES + 1, newest + 1))
        (last,) = numbers(disk, "last")
        assert last in {newest, newest - 1}, "written one after the other"
        assert before <= newest <= after, "nothing of before is missing"
        moments.append(newest)
        disk.unlink()
    assert moments == sorted(set(moments)), "the workload goes on"
    steps = [s["name"] for s in driver.record(sandbox)["snapshots"][-1]["steps"]]
    assert "pause" not in steps
    assert driver.delete(sandbox)
