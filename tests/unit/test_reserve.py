"""libvirt is opened only where it can note the state of every machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from vmdriver.hypervisor.reserve import RESERVE_BYTES, Reserve


class Disk:
    """How much is free."""

    def __init__(self, free: int) -> None:
        self.free = free
        self.asked = asyncio.Event()

    def __call__(self, _path: Path) -> int:
        self.asked.set()
        return self.free


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run" / "qemu").mkdir(parents=True)
    return tmp_path


def machine(root: Path) -> None:
    (root / "run" / "qemu" / "a.xml").write_text("<domstatus/>")


async def test_with_a_machine_it_waits_until_the_full_disk_has_space(
    root: Path,
) -> None:
    machine(root)
    disk = Disk(4096)
    waiting = asyncio.create_task(Reserve(root, disk, pause_s=0.01).enough())
    await disk.asked.wait()
    await asyncio.sleep(0.05)
    assert not waiting.done()
    disk.free = 2**30
    await asyncio.wait_for(waiting, 5)


async def test_space_that_is_taken_at_once_is_none(root: Path) -> None:
    machine(root)
    answers = iter([2**30, 0, 0, 2**30, 2**30])
    left: list[int] = []

    def free(_path: Path) -> int:
        left.append(next(answers))
        return left[-1]

    await asyncio.wait_for(Reserve(root, free, pause_s=0.01).enough(), 5)
    assert len(left) == 5


async def test_without_a_machine_there_is_nothing_to_wait_for(root: Path) -> None:
    await asyncio.wait_for(Reserve(root, Disk(0)).enough(), 5)


async def test_what_is_kept_back_is_given_back_at_the_next_start(root: Path) -> None:
    Reserve(root).take()
    assert (root / "reserve").stat().st_blocks * 512 >= RESERVE_BYTES
    Reserve(root).give_back()
    assert not (root / "reserve").exists()


async def test_of_a_nearly_full_disk_nothing_is_kept_back(root: Path) -> None:
    Reserve(root, Disk(RESERVE_BYTES)).take()
    assert not (root / "reserve").exists()
