"""Folders of the host in whole lives of sandboxes: read while the machine runs and by nobody afterwards, and refused
with what cannot be together with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.crashes import Bomb, BombAtCalls, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import check_claimed
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario import lives
from tests.scenario.stage import eventually, operations
from vmdriver.errors import DriverError, Refused
from vmdriver.lifecycle.engine.resource import HOST_MOUNTS
from vmdriver.lifecycle.launch.host_mounts import HostMounts
from vmdriver.model.host_mount import AllowedFolder
from vmdriver.model.phase import Phase

MODELS, OUT, SECRET = "/srv/models", "/srv/out", "/srv/secret"
WRITER = "nobody"
SHARING = dataclasses.replace(
    SETTINGS,
    host_mounts=(
        AllowedFolder(path=MODELS),
        AllowedFolder(path=OUT, read_only=False, user=WRITER),
    ),
)
ASKED = [
    {"path": f"{MODELS}/llama", "mount": "/data/models"},
    {"path": OUT, "mount": "/data/out", "read_only": False},
]
CONFIG: dict[str, Any] = {"host_mounts": ASKED}


def host() -> World:
    return World(host_paths={MODELS, f"{MODELS}/llama", OUT, SECRET})


async def begun(world: World, settings: Any = SHARING, **options: Any) -> FakeDriver:
    driver = FakeDriver(world, settings=settings, **options)
    await driver.manager.recover()
    return driver


async def created(driver: FakeDriver, name: str = "s1", **changes: Any) -> None:
    await driver.manager.create(
        spec(name, **{"driver_config": CONFIG, **changes}), None
    )
    await driver.settled()


async def test_folders_are_read_while_the_machine_runs_and_by_nobody_else() -> None:
    world = host()
    driver = await begun(world)
    await created(driver)
    plan = driver.plan()
    assert [(m.path, m.mount, m.read_only) for m in plan.host_mounts] == [
        (f"{MODELS}/llama", "/data/models", True),
        (OUT, "/data/out", False),
    ]
    assert [m.uid is None for m in plan.host_mounts] == [True, False]
    assert world.folders == {
        "s1/folders": dict.fromkeys(("folder0", "folder1"), plan.domain)
    }
    told = [t.event for t in driver.broadcaster.recent()]
    (attached,) = (e.message for e in told if e.reason == "HostMountsAttached")
    assert f"{MODELS}/llama at /data/models (read only), {OUT} at /data/out" in attached
    await driver.manager.stop("s1", "")
    assert world.folders == {}
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await driver.manager.delete("s1", "")
    assert world.objects() == set()
    await driver.close()


async def test_a_machine_that_runs_keeps_its_folders_across_a_restart_of_the_driver() -> (
    None
):
    world = host()
    driver = await begun(world)
    await created(driver)
    before = dict(world.folders)
    await driver.close()
    again = await begun(world)
    await again.settled()
    assert again.phase() is Phase.RUNNING
    assert world.folders == before
    assert HOST_MOUNTS in again.held()
    await again.manager.delete("s1", "")
    assert world.objects() == set()
    await again.close()


async def test_what_an_extension_or_nobody_allows_is_not_had_after_the_settings_changed() -> (
    None
):
    world = host()
    driver = await begun(world)
    await created(driver)
    await driver.manager.stop("s1", "")
    await driver.close()
    closed = await begun(world, SETTINGS)
    with pytest.raises(Refused) as refused:
        await closed.manager.start("s1", "")
    assert refused.value.reason == "HostMountNotAllowed"
    await closed.close()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"path": SECRET, "mount": "/data/a"}, "HostMountNotAllowed"),
        ({"path": "/srv", "mount": "/data/a"}, "HostMountNotAllowed"),
        ({"path": "/srv/models-of-others", "mount": "/data/a"}, "HostMountNotAllowed"),
        ({"path": f"{MODELS}/../secret", "mount": "/data/a"}, "InvalidRequest"),
        ({"path": "srv/models", "mount": "/data/a"}, "InvalidRequest"),
        ({"path": MODELS, "mount": "/etc/a"}, "InvalidRequest"),
        ({"path": MODELS, "mount": "/data/a", "mode": "x"}, "InvalidRequest"),
        ({"path": MODELS, "mount": "/data/a", "read_only": 0}, "InvalidRequest"),
        ({"path": MODELS, "mount": "/data/a", "read_only": False}, "HostMountReadOnly"),
        ({"path": f"{MODELS}/gone", "mount": "/data/a"}, "HostMountMissing"),
    ],
)  # fmt: skip
async def test_what_cannot_be_had_is_refused_at_once(
    asked: dict[str, Any], reason: str
) -> None:
    driver = await begun(host())
    wanted = spec(driver_config={"host_mounts": [asked]})
    for ask in (driver.manager.validate(wanted), driver.manager.create(wanted, None)):
        with pytest.raises(DriverError) as refused:
            await ask
        assert refused.value.reason == reason
    assert not driver.sandboxes()
    await driver.close()


@pytest.mark.parametrize(
    "config",
    [
        {"host_mounts": "all"},
        {"host_mounts": [{"path": MODELS, "mount": f"/data/{n}"} for n in range(9)]},
        {"host_mounts": [{"path": MODELS, "mount": m} for m in ("/data", "/data/a")]},
        {
            "host_mounts": [{"path": MODELS, "mount": "/data/a/b"}],
            "volumes": [{"name": "v", "mount": "/data/a", "size_mib": 64}],
        },
    ],
)
async def test_what_is_no_list_of_places_apart_is_told(config: dict[str, Any]) -> None:
    driver = await begun(host())
    with pytest.raises(DriverError) as refused:
        await driver.manager.validate(spec(driver_config=config))
    assert refused.value.reason == "InvalidRequest"
    assert "host_mounts" in refused.value.message
    await driver.close()


async def test_without_virtiofsd_none_is_had_and_the_others_start() -> None:
    world = host()
    world.has_virtiofsd = False
    driver = await begun(world)
    with pytest.raises(DriverError) as refused:
        await created(driver)
    assert refused.value.reason == "VirtiofsdMissing"
    await created(driver, driver_config={})
    assert driver.phase() is Phase.RUNNING
    await driver.close()


async def test_a_user_that_is_root_or_nobody_of_the_host_is_refused() -> None:
    driver = await begun(host())
    mounts = driver.core.host_mounts
    for found in (None, (0, 0)):
        asked = HostMounts(
            host=mounts.host, settings=SHARING, account=lambda _, found=found: found
        )
        with pytest.raises(Refused) as refused:
            asked.planned(spec(driver_config=CONFIG), "d")
        assert refused.value.reason == "HostMountUser"
    await driver.close()


async def test_its_memory_is_never_kept_and_it_never_goes_on_from_anybodys() -> None:
    settings = dataclasses.replace(
        SHARING, templates_enabled=True, warm_pool=1, on_stop="suspend"
    )
    world = host()
    driver = await begun(world, settings)
    await created(driver)
    found, worker = operations(driver)
    refusals: list[Callable[[], Any]] = [
        lambda: found.suspend(worker),
        lambda: found.create_snapshot(worker, "a", disk_only=False),
    ]
    for ask in refusals:
        with pytest.raises(Refused) as refused:
            await ask()
        assert refused.value.reason == "HostMountAttached"
        assert driver.phase() is Phase.RUNNING
    await found.create_snapshot(worker, "a", disk_only=True)
    assert driver.manager.templates.listed() == []
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.STOPPED, "whatever the operator's on_stop is"
    assert world.folders == {}
    with pytest.raises(Refused) as refused:
        await created(driver, "s2", driver_config={**CONFIG, "on_stop": "suspend"})
    assert refused.value.reason == "HostMountAttached"
    await driver.close()


async def test_a_folder_that_goes_under_way_leaves_nothing_behind() -> None:
    world = host()
    driver = await begun(world)

    def gone(call: str) -> bool:
        if call == f"read folder {OUT}":
            world.host_paths.discard(OUT)
        return False

    world.fail = gone
    await created(driver)
    assert driver.phase() is Phase.FAILED
    assert "HostMountMissing" in driver.failure().message
    assert world.folders == {}
    await driver.manager.delete("s1", "")
    assert world.objects() == set()
    await driver.close()


async def test_a_reader_that_ends_is_told_once_and_the_machine_goes_on() -> None:
    world = host()
    driver = await begun(world)
    await created(driver)
    look = driver.manager.housekeeping.folders.look
    await look()
    del world.folders["s1/folders"]["folder1"]
    for _ in range(3):
        await look()
    told = [t.event for t in driver.broadcaster.recent()]
    lost = [e.message for e in told if e.reason == "HostMountLost"]
    assert [OUT in message for message in lost] == [True]
    assert driver.phase() is Phase.RUNNING
    assert OUT in driver.shown()[2]
    await driver.manager.stop("s1", "")
    await driver.manager.start("s1", "")
    await driver.settled()
    await look()
    await look()
    assert OUT not in driver.shown()[2]
    await driver.close()


async def test_a_machine_that_ends_by_itself_lost_no_folder() -> None:
    world = host()
    driver = await begun(world)
    await created(driver)
    look = driver.manager.housekeeping.folders.look
    world.qemu_ends(driver.plan().domain)
    await look()
    driver.hint()
    await driver.in_phase("s1", Phase.FAILED)
    await look()
    await look()
    told = [t.event.reason for t in driver.broadcaster.recent()]
    assert "HostMountLost" not in told
    assert world.folders == {}
    await driver.close()


async def test_readers_of_a_sandbox_that_cannot_be_read_end_with_its_delete() -> None:
    world = host()
    driver = await begun(world)
    await created(driver)
    await driver.close()
    world.journals["s1"].insert(0, "{}")
    again = await begun(world)
    assert len(world.folders["s1/folders"]) == 2
    await again.manager.delete("s1", "")
    await eventually(lambda: not again.knows(), "it is not deleted")
    assert world.folders == {}
    await again.close()


async def test_what_no_sandbox_claims_is_ended_when_the_driver_starts() -> None:
    world = host()
    driver = await begun(world)
    await created(driver)
    await driver.close()
    del world.records["s1"]
    world.journals.pop("s1")
    again = await begun(world)
    await again.settled()
    assert world.folders == {}
    await again.close()


# --- the crash matrix


async def perform(driver: FakeDriver, step: str) -> None:
    await lives.perform(driver, step, spec(driver_config=CONFIG))


async def run_until_crash(world: World, bomb: Bomb, steps: tuple[str, ...]) -> bool:
    driver = FakeDriver(world, bomb, settings=SHARING)

    async def play() -> None:
        for step in steps:
            await perform(driver, step)
        bomb.defuse()

    return await played_until_crash(driver, bomb, play)


@pytest.mark.parametrize("bombs", [Bomb, BombAtCalls])
@pytest.mark.parametrize("name", lives.SHORT)
async def test_a_crash_anywhere_leaves_no_reader_behind(
    name: str, bombs: type[Bomb]
) -> None:
    steps, trial = lives.SEQUENCES[name], host()
    bomb = bombs(trial)
    assert not await run_until_crash(trial, bomb, steps)
    assert bomb.passed > 15
    for at in range(bomb.passed):
        world = host()
        assert await run_until_crash(world, bombs(world, at), steps), (
            f"no crash at {at}"
        )
        check_claimed(world, "folders")
        driver = await begun(world)
        await driver.settled()
        check_claimed(world, "folders")
        for step in steps:
            if step != "create" and not driver.knows():
                continue
            await perform(driver, step)
        if steps[-1] != "delete":
            assert driver.phase() is Phase.RUNNING, at
            assert len(world.folders["s1/folders"]) == 2
            await driver.manager.delete("s1", "")
        assert world.objects() == set()
        await driver.close()
