"""What sandboxes, the upkeep and operators do with images, on a fake host."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from vmdriver._proto import admin_pb2 as pb
from vmdriver.config import config_of
from vmdriver.config.guest import PUBLISHED_SUPERVISOR
from vmdriver.config.images import PUBLISHED_IMAGE
from vmdriver.config.views import settings_from
from vmdriver.errors import InvalidRequest, Refused
from vmdriver.lifecycle.launch.launcher import ImageTeller
from vmdriver.lifecycle.launch.supervisor import program_in
from vmdriver.lifecycle.ports.images import CachedFile, CacheLimits, ImageProgress
from vmdriver.model.image import ImageConfig
from vmdriver.model.phase import Phase
from vmdriver.oci.retention import to_remove
from vmdriver.service.admin import Admin
from vmdriver.service.servicer import Readiness

MIB = 2**20


async def running(world: World | None = None, **changes: Any) -> FakeDriver:
    settings = changes.pop("settings", SETTINGS)
    driver = FakeDriver(world or World(), settings=settings)
    await driver.manager.recover()
    await driver.manager.create(spec(**changes), None)
    await driver.settled()
    return driver


async def test_the_images_environment_is_below_the_requests_and_the_drivers() -> None:
    world = World()
    world.image_config = ImageConfig(
        environment={
            "PATH": "/opt/bin:/bin",
            "COLOUR": "image",
            "KEPT": "image",
            "HOME": "/root",
            "OPENSHELL_ENDPOINT": "http://evil",
        },
        user="1000",
        working_directory="/srv",
        entrypoint=("/entry",),
    )
    driver = await running(world, environment={"COLOUR": "request"})
    plan = driver.plan()
    told = plan.environment
    assert {"COLOUR", "KEPT"}.isdisjoint(told), (
        "the supervisor is root: neither request nor image tells it anything"
    )
    assert told["HOME"] == "/sandbox"
    assert told["OPENSHELL_ENDPOINT"].endswith(":17670")
    user = told["OPENSHELL_USER_ENVIRONMENT"]
    assert '"PATH": "/opt/bin:/bin"' in user
    assert '"COLOUR": "request"' in user
    assert '"KEPT": "image"' in user
    assert "HOME" not in user
    assert "evil" not in user
    record = driver.record()
    assert record.image_config.working_directory == "/srv"
    assert record.image_config.entrypoint == ("/entry",)
    await driver.manager.stop("s1", "")
    world.image_config = ImageConfig()
    await driver.manager.start("s1", "")
    await driver.settled()
    again = driver.plan()
    assert again.environment["OPENSHELL_USER_ENVIRONMENT"] == user, "the same image"
    await driver.close()


async def test_an_image_is_kept_until_the_record_says_that_it_is_needed() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    seen: list[tuple[bool, bool]] = []

    def look_at(call: str) -> bool:
        if call.startswith("create overlay"):
            kept = "s1" in world.kept_checkpoints
            plans = [record.plan for record in driver.records()]
            needed = [plan.disk("root").backing[-1] for plan in plans if plan]
            seen.append((kept, "/base.ext4" in needed))
        return False

    world.fail = look_at
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert seen == [(True, True)]
    assert world.kept_checkpoints == set()
    await driver.manager.images.collect()
    assert world.images_in_use == {"/base.ext4"}
    assert "/supervisor.img" in world.supervisors_in_use
    await driver.manager.delete("s1", "")
    await driver.manager.images.collect()
    assert world.images_in_use == set()
    await driver.close()


async def test_an_image_that_may_not_be_used_refuses_the_create() -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    wrong = spec(image="forbidden.test/x:1")
    for ask in (driver.manager.validate, lambda s: driver.manager.create(s, None)):
        with pytest.raises(Refused, match=r"template\.image"):
            await ask(wrong)
    assert not driver.world.records
    await driver.close()


async def test_a_failed_launch_does_not_keep_its_image() -> None:
    world = World()
    world.fail = lambda call: call.startswith("make tap")
    driver = await running(world)
    assert driver.phase() is Phase.FAILED
    assert world.kept_checkpoints == set()
    await driver.close()


@pytest.mark.parametrize(("asked", "given"), [(None, 4096), (8192, 8192), (300, 300)])
async def test_a_request_may_say_how_large_its_disk_is(
    asked: int | None, given: int
) -> None:
    config = {} if asked is None else {"disk_mib": asked}
    driver = await running(driver_config=config)
    plan = driver.plan()
    assert plan.disk("root").size_mib == given
    await driver.close()


@pytest.mark.parametrize("asked", [255, 70_000, "big", True, 1.5])
async def test_a_size_that_cannot_be_is_refused_by_name(asked: Any) -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    with pytest.raises(InvalidRequest, match=r"driver_config\.disk_mib"):
        await driver.manager.create(spec(driver_config={"disk_mib": asked}), None)
    await driver.close()


async def test_the_default_image_is_prepared_when_the_driver_starts() -> None:
    settings = dataclasses.replace(
        SETTINGS, default_image="example.org/default:1", prefetch_default_image=True
    )
    driver = FakeDriver(World(), settings=settings)
    await driver.manager.recover()
    await asyncio.sleep(0.01)
    assert "prepare example.org/default:1" in driver.world.calls
    assert driver.world.kept_checkpoints == set()
    await driver.close()


async def test_where_no_supervisor_program_is_set_it_comes_from_an_image() -> None:
    settings = dataclasses.replace(
        SETTINGS, supervisor=None, supervisor_image="example.org/supervisor:1"
    )
    driver = FakeDriver(World(), settings=settings)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    message = driver.failure().message
    assert "supervisor_image has no openshell-sandbox" in message, "there is no /tree"
    assert "unpack example.org/supervisor:1" in driver.world.calls
    none = FakeDriver(World(), settings=dataclasses.replace(SETTINGS, supervisor=None))
    await none.manager.recover()
    await none.manager.create(spec(), None)
    await none.settled()
    message = none.failure().message
    assert "no supervisor" in message
    for one in (driver, none):
        await one.close()


def test_a_supervisor_is_found_where_images_have_it(tmp_path: Path) -> None:
    place = tmp_path / "opt" / "openshell" / "bin" / "openshell-sandbox"
    place.parent.mkdir(parents=True)
    place.write_text("x")
    assert program_in(tmp_path) == place
    (tmp_path / "openshell-sandbox").symlink_to("/bin/sh")
    assert program_in(tmp_path) == place, "a link may lead anywhere"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "opt").symlink_to(tmp_path / "opt")
    with pytest.raises(Refused, match="has no openshell-sandbox"):
        program_in(tree)


def test_progress_is_told_by_step_and_twice_a_second_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    told: list[tuple[str, str, dict[str, str]]] = []
    teller = ImageTeller(lambda r, d, p: told.append((r, d, p.metadata())))
    for number in range(40):
        teller(ImageProgress("PullingLayer", str(number)))
        now[0] += 0.1
    teller(ImageProgress("ExportingRootfs", "unpacking"))
    assert 6 <= len(told) - 1 <= 9
    assert told[-1][0] == "ExportingRootfs"
    assert told[0][2]["openshell.progress.active_step"] == "pulling_image"
    assert told[0][2]["openshell.progress.active_detail"] == "0"


def cached(name: str, used: float, size: int = 10, **more: bool) -> CachedFile:
    return CachedFile(name, size * MIB, used, more.pop("in_use", False), **more)


def test_what_leaves_the_cache_and_in_which_order() -> None:
    files = [
        cached("new", 90.0),
        cached("old", 10.0),
        cached("older", 5.0),
        cached("needed", 1.0, in_use=True),
        cached("nobody's", 99.0, known=False),
    ]

    def removed(limits: CacheLimits, free: int = 100) -> list[str]:
        return [f.path for f in to_remove(files, limits, 100.0, free * MIB)]

    assert removed(CacheLimits()) == ["nobody's"]
    assert removed(CacheLimits(most_age_s=50.0)) == ["nobody's", "older", "old"]
    assert removed(CacheLimits(most_bytes=30 * MIB)) == ["nobody's", "older"]
    assert removed(CacheLimits(free_floor=130 * MIB)) == ["nobody's", "older", "old"]
    everything = removed(CacheLimits(most_bytes=1, most_age_s=1.0))
    assert everything == ["nobody's", "older", "old", "new"]


async def test_operators_ask_for_images_through_the_admin_service() -> None:
    driver = await running()
    readiness = Readiness()
    readiness.set(driver.manager)
    service = Admin(readiness, driver.broadcaster, driver.pictures.now)
    request = pb.PrefetchImageRequest(reference="example.org/next:1")
    events = [event async for event in service.PrefetchImage(request, None)]
    assert [event.reason for event in events] == ["CacheHit"]
    assert "prepare example.org/next:1" in driver.world.calls
    assert driver.world.kept_checkpoints == set()
    driver.world.fail = lambda call: call.startswith("prepare")
    with pytest.raises(Exception, match="on purpose"):
        [event async for event in service.PrefetchImage(request, None)]
    found = await service.CollectImages(pb.CollectImagesRequest(), None)
    assert list(found.files) == []
    driver.world.fail = lambda _call: False
    await driver.close()


async def test_images_stay_while_a_record_cannot_be_read() -> None:
    world = (driver := await running()).world
    await driver.close()
    world.records["s9"] = "{"
    driver = FakeDriver(world)
    await driver.manager.recover()
    await asyncio.sleep(0)
    world.images_in_use = {"untouched"}
    assert list(await driver.manager.images.collect()) == []
    assert world.images_in_use == {"untouched"}
    await driver.close()


async def published(world: World) -> str:
    """The image that a driver unpacks for the supervisor, with upstream's name as its setting."""
    settings = dataclasses.replace(
        SETTINGS, supervisor=None, supervisor_image=PUBLISHED_SUPERVISOR
    )
    driver = FakeDriver(world, settings=settings)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    await driver.close()
    asked = [call for call in world.calls if call.startswith("unpack ")]
    return asked[-1].removeprefix("unpack ") if asked else driver.failure().message


@pytest.mark.parametrize(
    ("version", "tag"),
    [
        ("0.0.111", "0.0.111"),
        ("v0.0.69", "0.0.69"),
        ("0.0.37-dev.156+g1d3b741ee", "0.0.37-dev.156-g1d3b741ee"),
        ("0.0.0", "dev"),
    ],
)
async def test_the_published_supervisor_is_that_of_the_gateways_version(
    version: str, tag: str
) -> None:
    world = World(gateway_version=version)
    assert await published(world) == f"ghcr.io/nvidia/openshell/supervisor:{tag}"


async def test_while_the_gateway_is_away_the_supervisor_is_the_one_of_last_time() -> (
    None
):
    world = World(gateway_version="")
    assert "does not say its version" in await published(world)
    world = World(gateway_version="")
    repository = "ghcr.io/nvidia/openshell/supervisor"
    world.kept_names = [f"{repository}:0.0.110", f"{repository}:0.0.111", "other:1"]
    assert await published(world) == f"{repository}:0.0.111"


async def test_the_published_default_image_is_not_fetched_before_somebody_needs_it() -> (
    None
):
    for image, fetched in ((PUBLISHED_IMAGE, False), ("example.org/own:1", True)):
        settings = settings_from(config_of({"default_image": image}))
        assert settings.prefetch_default_image is fetched
