"""Supervisors' disks: several first creates at once, makers that are cut off, sources that change meanwhile. With the real programs."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_storage import compile_program, on_disk
from vmdriver.host.threads import Threads
from vmdriver.storage import supervisors
from vmdriver.storage.layout import Layout
from vmdriver.storage.program_bundle import Bundle
from vmdriver.storage.supervisors import SupervisorDisks


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.make()
    return layout


@pytest.fixture
def disks(layout: Layout) -> Iterator[SupervisorDisks]:
    threads = Threads("supervisors", 4)
    yield SupervisorDisks(layout, threads)
    threads.close()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return compile_program(tmp_path / "program")


def check(disk: Path, layout: Layout) -> None:
    """A sound file system with everything in it, and nothing beside it."""
    subprocess.run(["e2fsck", "-fn", disk], check=True, capture_output=True)
    assert "/openshell-sandbox/" in on_disk(disk, "ls -p /")
    assert "/libc.so.6/" in on_disk(disk, "ls -p /lib")
    assert sorted(layout.supervisors.iterdir()) == [disk, disk.with_suffix(".used")]


async def test_several_first_creates_at_once_all_get_the_same_disk(
    disks: SupervisorDisks, layout: Layout, program: Path
) -> None:
    found = await asyncio.gather(*(disks.disk(program) for _ in range(8)))
    assert len(set(found)) == 1
    check(found[0], layout)


async def test_one_that_gives_up_harms_none_of_those_that_wait(
    disks: SupervisorDisks, layout: Layout, program: Path
) -> None:
    tasks = [asyncio.ensure_future(disks.disk(program)) for _ in range(4)]
    while not list(layout.supervisors.glob(".*")):  # the first is at it
        await asyncio.sleep(0.001)
    tasks[0].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    assert len(set(done[1:])) == 1
    check(done[1], layout)


async def test_two_makers_that_do_not_know_each_other_do_not_meet(
    layout: Layout, program: Path
) -> None:
    """As when a killed driver's thread and programs go on beside the next driver."""
    thread_pools = [Threads("a", 2), Threads("b", 2)]
    stores = [SupervisorDisks(layout, threads) for threads in thread_pools]
    found = await asyncio.gather(*(s.disk(program) for s in stores))
    assert found[0] == found[1]
    check(found[0], layout)
    for threads in thread_pools:
        threads.close()


async def test_a_source_that_changes_meanwhile_is_not_published_under_the_old_digest(
    disks: SupervisorDisks,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole = await disks.disk(program)
    whole.unlink()
    real, text = supervisors._lay_out, "int main(void) { return 3; }"

    def changed(bundle: Bundle, tree: Path) -> Bundle:
        compile_program(program, text=text)
        return real(bundle, tree)

    monkeypatch.setattr(supervisors, "_lay_out", changed)
    other = await disks.disk(program)
    assert other != whole
    assert not whole.exists(), "it is not what that digest says"
    monkeypatch.undo()
    again = await disks.disk(shutil.copyfile(program, tmp_path / "same"))
    assert again == other


async def test_what_a_killed_driver_had_half_made_is_no_hindrance(
    disks: SupervisorDisks, layout: Layout, program: Path
) -> None:
    (layout.supervisors / f".{'0' * 32}.img.1.tree").mkdir()
    (layout.supervisors / ".work-1" / "tree").mkdir(parents=True)
    disk = await disks.disk(program)
    assert "/libc.so.6/" in on_disk(disk, "ls -p /lib")
