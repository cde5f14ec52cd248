"""Whatever lies in the state directory, a driver starts: each kind of dirt in each place, with the real file system."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fakes import dirt
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import image_rules
from tests.fakes.world import World
from vmdriver.cli.doctor import examination
from vmdriver.errors import ConfigError, Refused
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.lock import StateLock
from vmdriver.host.threads import Threads
from vmdriver.hypervisor.embedded import (
    make_way,
    remove_torn_definitions,
    write_embedded_configuration,
)
from vmdriver.hypervisor.run_state import (
    forget_earlier_boot,
    forget_ended_machines,
    forget_unstarted_machines,
)
from vmdriver.lifecycle.ports.host import Ownership
from vmdriver.lifecycle.ports.images import CacheLimits
from vmdriver.oci.image_service import ImageService
from vmdriver.service import server
from vmdriver.storage.checkpoints import Checkpoints
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layers.machine_users import MachineUsers
from vmdriver.storage.layout import Layout
from vmdriver.storage.paths import FilePaths
from vmdriver.storage.programs import boot
from vmdriver.storage.programs.supervisors import SupervisorDisks
from vmdriver.storage.sandboxes.launch_files import LaunchFiles
from vmdriver.storage.sandboxes.records import RecordStore
from vmdriver.storage.way_in import came_in


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    state = tmp_path / "state"
    Layout(state).make()
    yield state
    dirt.clean(state)


@pytest.fixture
async def threads() -> AsyncIterator[Threads]:
    threads = Threads("dirt", 4)
    yield threads
    threads.close()


async def start(state: Path, threads: Threads) -> None:
    """Every step of a driver's start that looks at the state directory; raises what would keep
    it from starting.
    """
    layout = Layout(state)
    layout.make()
    lock = StateLock(layout.lock)
    await lock.acquire(1)
    try:
        await _start(layout, threads)
    finally:
        lock.release()


async def _start(layout: Layout, threads: Threads) -> None:
    owner = Ownership(os.getuid(), os.getgid())
    came_in(layout, Path("/run/vmd-qemu/state"))
    make_way(layout.libvirt, layout.clearing)
    write_embedded_configuration(layout.libvirt, "root", "root", layout.clearing)
    remove_torn_definitions(layout.libvirt)
    forget_earlier_boot(layout.libvirt, "boot")
    forget_ended_machines(layout.libvirt)
    forget_unstarted_machines(layout.libvirt)
    with pytest.raises(Refused, match="boot files"):
        boot.load(layout.boot)
    images = ImageService(
        layout.images, threads, image_rules(), numbers=UserNamespace()
    )
    supervisors = SupervisorDisks(layout, threads, numbers=UserNamespace())
    await images.open()
    await supervisors.open()
    # The rest of the start is the manager's, on these files; its host is a fake.
    driver = FakeDriver(
        World(),
        adapters={
            "disks": DiskStore(layout, threads, owner),
            "launch_files": LaunchFiles(layout, threads, owner),
            "supervisor_disks": supervisors,
            "memory_store": Checkpoints(threads, owner, layout.clearing),
            "machine_users": MachineUsers(layout, threads),
            "records": RecordStore(layout, threads),
        },
        paths=FilePaths(layout),
        templates_directory=str(layout.templates),
        warm_directory=str(layout.warm),
    )
    try:
        await driver.manager.recover()
        await supervisors.collect(set())
        await images.collect(set(), CacheLimits(0, 0, 0))
        await images.known()
    finally:
        await driver.close()
        await images.close()


@pytest.mark.parametrize("kind", dirt.KINDS)
async def test_it_starts_with_that_in_any_place(
    state: Path, threads: Threads, kind: str
) -> None:
    failed = []
    for place in dirt.PLACES:
        dirt.put(state, place, kind)
        try:
            for _ in range(2):
                await start(state, threads)
        except (Exception, asyncio.CancelledError) as error:
            failed.append(f"{place}: {type(error).__name__}: {error}")
        dirt.clean(state)
    assert not failed, "\n".join(failed)


async def test_what_was_in_the_way_is_kept_and_told_until_it_is_gone(
    state: Path, caplog: pytest.LogCaptureFixture, threads: Threads
) -> None:
    dirt.put(state, "images", "foreign_file")
    dirt.put(state, "templates/x", "immutable_inside")
    await start(state, threads)
    notes = {note.path: Path(note.place) for note in Layout(state).clearing.notes()}
    assert set(notes) == {str(state / "images"), str(state / "templates/x")}
    assert notes[str(state / "images")].read_bytes().startswith(b"not of this driver")
    assert "images was in the way" in caplog.text
    told = [finding.message for finding in examination.in_the_way(Layout(state))]
    assert len(told) == 2
    assert all("was in the way" in message for message in told)
    await start(state, threads)
    assert len(Layout(state).clearing.notes()) == 2, "it is told once"
    dirt.clean(state)
    shutil.rmtree(state / "set-aside")
    assert Layout(state).clearing.notes() == []


@pytest.mark.parametrize("kind", ["dangling_link", "foreign_file"])
async def test_without_the_directory_of_records_nothing_of_a_sandbox_is_removed(
    state: Path, threads: Threads, kind: str
) -> None:
    """As when its disk was not mounted: whose machines those are nobody knows now."""
    (state / "layers" / "s1.0.qcow2").write_bytes(b"a root disk")
    dirt.put(state, "sandboxes", kind)
    for _ in range(2):
        await start(state, threads)
        assert (state / "layers" / "s1.0.qcow2").exists()
    records = RecordStore(Layout(state), threads)
    assert not records.all_there()
    shutil.rmtree(state / "set-aside")
    assert records.all_there()
    await start(state, threads)
    assert not (state / "layers" / "s1.0.qcow2").exists()


async def test_without_the_directory_of_records_no_machine_is_ended() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec("s1"), None)
    await driver.settled()
    machines = set(world.domains)
    await driver.close()
    world.records.clear()
    world.records_there = False
    again = FakeDriver(world)
    await again.manager.recover()
    assert set(world.domains) == machines
    assert world.taps
    world.images_in_use = {"untouched"}
    assert list(await again.manager.images.collect()) == []
    assert world.images_in_use == {"untouched"}, "its disk stands on one of them"
    await again.close()
    world.records_there = True
    last = FakeDriver(world)
    await last.manager.recover()
    assert not world.domains
    await last.close()


@pytest.mark.parametrize("kind", dirt.KINDS)
@pytest.mark.parametrize("place", ["run", "run/admin.sock", "run/x"])
async def test_a_socket_below_the_state_directory_is_served_whatever_lies_there(
    state: Path, kind: str, place: str
) -> None:
    dirt.put(state, place, kind)
    path = state / "run" / "admin.sock"
    Layout(state).make_way_for_socket(path)
    served = await server.serve(path, lambda _: None, server.ADMIN)
    assert path.is_socket()
    await served.stop(None)


async def test_what_lies_outside_the_state_directory_is_not_moved(
    state: Path, tmp_path: Path
) -> None:
    dirt.put(tmp_path, "run/d.sock", "foreign_file")
    (tmp_path / "run").chmod(0o700)
    Layout(state).make_way_for_socket(tmp_path / "run" / "d.sock")
    assert (tmp_path / "run" / "d.sock").is_file()
    with pytest.raises(ConfigError, match="not a socket"):
        await server.serve(tmp_path / "run" / "d.sock", lambda _: None, server.ADMIN)
