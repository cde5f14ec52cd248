"""Sandboxes with two volumes, and snapshots of these."""

from __future__ import annotations

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import held_objects
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.ports.volumes import Piece
from vmdriver.model.record import layers_of
from vmdriver.model.spec import SandboxSpec
from vmdriver.model.volume import volume_id

DATA, MORE = volume_id("", "data"), volume_id("", "more")
BEFORE, AFTER = {0: b"before"}, {0: b"after", 9: b"more"}


def wanting(sandbox_id: str = "s1", *, read_only: bool = False) -> SandboxSpec:
    """A sandbox with the volumes "data" and "more"."""
    volumes = [
        {"name": name, "mount": f"/{name}", "size_mib": 64, "read_only": read_only}
        for name in ("data", "more")
    ]
    return spec(sandbox_id, driver_config={"volumes": volumes})


async def running(driver: FakeDriver, *specs: SandboxSpec) -> None:
    for one in specs:
        await driver.manager.create(one, None)
    await driver.settled()


def write(driver: FakeDriver, content: dict[int, bytes]) -> None:
    """What its guest writes to both."""
    for name in (DATA, MORE):
        driver.world.volumes.content[name] = dict(content)


async def take(driver: FakeDriver, name: str = "a", sandbox_id: str = "s1") -> None:
    operations, worker = Operations(driver.manager), driver.worker(sandbox_id)
    await operations.create_snapshot(worker, name, disk_only=True, volumes=True)


async def put_back(driver: FakeDriver, name: str = "a") -> None:
    await Operations(driver.manager).restore_snapshot(
        driver.worker(), name, volumes=True
    )


async def content(driver: FakeDriver, volume: str, of: str = "s1/a") -> list[Piece]:
    found = Operations(driver.manager).volume_of_snapshot(of, volume)
    return [piece async for piece in found]


def check_tidy(driver: FakeDriver) -> None:
    """Nothing of a snapshot is there that its record does not name, and nothing stands still."""
    world = driver.world
    named = set().union(*(layers_of(record) for record in driver.records()))
    copies = {path for path in world.files if path.endswith(".raw")}
    assert copies == {path for path in named if path.endswith(".raw")}
    assert not world.volumes.mirrors
    assert not world.volumes.backs
    assert not world.frozen
    assert world.objects() <= held_objects(world)
    for record in driver.records():
        for entry in record.snapshots:
            assert {copy.path for copy in entry.volumes} <= world.volumes.sealed
