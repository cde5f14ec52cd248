"""Devices of the host in whole lives of sandboxes: one owner at a time, given back whatever happens, and refused with
what cannot be together with them.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from tests.fakes.crashes import Bomb, BombAtCalls, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import check_claimed
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario import lives
from tests.scenario.stage import eventually, operations
from vmdriver.errors import (
    DriverError,
    Exhausted,
    InvalidRequest,
    Refused,
)
from vmdriver.extension import Extension
from vmdriver.lifecycle.engine.resource import DEVICES
from vmdriver.model.devices import VFIO, PciFunction
from vmdriver.model.phase import Phase
from vmdriver.model.spec import Resources
from vmdriver.telemetry import seen

GPU, AUDIO, OTHER, CARD = "0000:3b:00.0", "0000:3b:00.1", "0000:af:00.0", "0000:42:00.0"
HOST = {
    GPU: PciFunction(GPU, 0x030200, group=7, driver="nvidia", resettable=True),
    AUDIO: PciFunction(AUDIO, 0x040300, group=7, driver="snd_hda_intel", resettable=True),
    OTHER: PciFunction(OTHER, 0x030200, group=8, driver="nvidia", resettable=True),
    CARD: PciFunction(CARD, 0x020000, group=9, driver="mlx5_core", resettable=True),
}  # fmt: skip
PASSING = dataclasses.replace(SETTINGS, passthrough_devices=(GPU, AUDIO, CARD))
ONE = Resources(gpus=1)


def host() -> World:
    """With KVM, a GPU and a card that may be passed, and a GPU that may not."""
    return World(accelerator="kvm", pci=dict(HOST))


async def begun(world: World, settings: Any = PASSING, **options: Any) -> FakeDriver:
    driver = FakeDriver(world, settings=settings, **options)
    await driver.manager.recover()
    return driver


async def created(driver: FakeDriver, name: str = "s1", **changes: Any) -> None:
    await driver.manager.create(spec(name, **{"resources": ONE, **changes}), None)
    await driver.settled()


def check_untouched(world: World) -> None:
    """All devices are the host's."""
    assert world.pci == {a: f for a, f in HOST.items() if a in world.pci}
    assert world.groups == {}


async def test_a_sandbox_has_its_gpu_while_it_runs_and_the_host_has_it_else() -> None:
    world = host()
    driver = await begun(world)
    await created(driver)
    assert driver.phase() is Phase.RUNNING
    plan = driver.plan()
    assert plan.devices == (GPU,)
    assert [(f.address, f.given) for f in plan.passed] == [(GPU, True), (AUDIO, False)]
    assert plan.user is not None
    assert world.groups == {7: plan.user.uid}
    assert world.pci[GPU].driver == world.pci[AUDIO].driver == VFIO
    assert world.pci[OTHER] == HOST[OTHER]
    await driver.manager.stop("s1", "")
    check_untouched(world)
    await driver.manager.start("s1", "")
    await driver.settled()
    assert world.pci[GPU].driver == VFIO
    await driver.manager.delete("s1", "")
    check_untouched(world)
    assert world.objects() == set()
    await driver.close()


async def test_devices_are_asked_for_by_address_in_any_writing() -> None:
    driver = await begun(host())
    await created(driver, driver_config={"devices": ["42:00.0"]})
    assert set(driver.plan().devices) == {GPU, CARD}
    await driver.close()


async def test_a_machine_that_runs_keeps_its_devices_across_a_restart_of_the_driver() -> (
    None
):
    world = host()
    driver = await begun(world)
    await created(driver)
    await driver.close()
    again = await begun(world)
    await again.settled()
    assert again.phase() is Phase.RUNNING
    assert world.starts[again.plan().domain] == 1
    with pytest.raises(DriverError) as refused:
        await created(again, "s2")
    assert refused.value.reason == "NoDeviceFree"
    with pytest.raises(DriverError) as refused:
        await created(
            again, "s3", resources=Resources(), driver_config={"devices": [AUDIO]}
        )
    assert refused.value.reason == "DeviceTaken", "it is of the same group"
    await again.manager.delete("s1", "")
    await created(again, "s2")
    assert again.phase("s2") is Phase.RUNNING
    await again.close()


async def test_of_two_creates_at_once_one_has_it() -> None:
    driver = await begun(host())
    creates = [
        driver.manager.create(spec(name, resources=ONE), None) for name in ("a", "b")
    ]
    found = await asyncio.gather(*creates, return_exceptions=True)
    refused = [error for error in found if error is not None]
    assert len(refused) == 1
    assert isinstance(refused[0], DriverError)
    assert refused[0].reason == "NoDeviceFree"
    await driver.settled()
    (name,) = driver.sandboxes()
    assert driver.phase(name) is Phase.RUNNING
    await driver.close()


@pytest.mark.parametrize("by_name_first", [True, False])
async def test_of_two_creates_at_once_for_one_gpu_by_name_and_by_number_one_has_it(
    by_name_first: bool,
) -> None:
    driver = await begun(host())
    named = spec("named", driver_config={"devices": [GPU]})
    counted = spec("counted", resources=ONE)
    asked = (named, counted) if by_name_first else (counted, named)
    creates = [driver.manager.create(one, None) for one in asked]
    found = await asyncio.gather(*creates, return_exceptions=True)
    refused = [error.reason for error in found if isinstance(error, DriverError)]
    assert refused == ["NoDeviceFree" if by_name_first else "DeviceTaken"]
    await driver.settled()
    assert driver.sandboxes() == ["named" if by_name_first else "counted"]
    assert driver.phase(driver.sandboxes()[0]) is Phase.RUNNING
    await driver.close()


async def test_of_two_starts_at_once_one_has_it_and_the_other_says_why() -> None:
    driver = await begun(host())
    for name in ("a", "b"):
        await created(driver, name)
        await driver.manager.stop(name, "")
    starts = (driver.manager.start(name, "") for name in ("a", "b"))
    found = await asyncio.gather(*starts, return_exceptions=True)
    await driver.settled()
    runs = [name for name in ("a", "b") if driver.phase(name) is Phase.RUNNING]
    assert len(runs) == 1
    refused = [e.reason for e in found if isinstance(e, DriverError)]
    failed = [
        driver.failure(name).message
        for name in ("a", "b")
        if driver.phase(name) is Phase.FAILED
    ]
    assert refused == ["NoDeviceFree"] or "NoDeviceFree" in failed[0]
    (other,) = {"a", "b"} - set(runs)
    await driver.manager.delete(runs[0], "")
    await driver.manager.start(other, "")
    await driver.settled()
    assert driver.phase(other) is Phase.RUNNING
    await driver.close()


async def test_one_that_stands_still_after_a_failure_keeps_none_from_others() -> None:
    world = host()
    driver = await begun(world)
    world.fail = lambda call: call.startswith("start ")
    await created(driver)
    assert driver.phase() is Phase.FAILED
    check_untouched(world)
    world.fail = lambda _: False
    await created(driver, "s2")
    assert driver.phase("s2") is Phase.RUNNING
    with pytest.raises(DriverError, match="1 asked for, 0 of"):
        await driver.manager.start("s1", "")
    await driver.close()


async def test_a_device_that_cannot_be_given_back_is_nobodys_until_it_can() -> None:
    world = host()
    driver = await begun(world)
    await created(driver)
    world.fail = lambda call: call == f"take back device {AUDIO}"
    stopping = asyncio.ensure_future(driver.manager.stop("s1", ""))
    await driver.troubled()
    assert DEVICES in driver.held()
    with pytest.raises(DriverError) as refused:
        await created(driver, "s2")
    assert refused.value.reason == "NoDeviceFree"
    world.fail = lambda _: False
    driver.hint()
    await stopping
    check_untouched(world)
    await created(driver, "s2")
    assert driver.phase("s2") is Phase.RUNNING
    await driver.close()


async def test_one_that_is_pulled_out_before_the_start_fails_it_with_the_reason() -> (
    None
):
    world = host()
    driver = await begun(world)
    await created(driver)
    await driver.manager.stop("s1", "")
    del world.pci[GPU]
    with pytest.raises(DriverError) as refused:
        await driver.manager.start("s1", "")
    assert refused.value.reason == "NoDeviceFree"
    await driver.manager.delete("s1", "")
    assert world.objects() == set()
    await driver.close()


async def test_one_that_is_pulled_out_under_way_leaves_nothing_behind() -> None:
    world = host()
    driver = await begun(world)

    def pulled(call: str) -> bool:
        if call == f"give device {GPU}":
            del world.pci[GPU]
        return False

    world.fail = pulled
    await created(driver)
    assert driver.phase() is Phase.FAILED
    assert "DeviceMissing" in driver.failure().message
    check_untouched(world)
    await driver.manager.delete("s1", "")
    assert world.objects() == set()
    await driver.close()


async def test_one_that_is_pulled_out_of_a_running_machine_is_told_once() -> None:
    world = host()
    driver = await begun(world)
    await created(driver)
    told = driver.broadcaster.recent
    look = driver.manager.housekeeping.devices.look
    await look()
    del world.pci[GPU]
    await look()
    await look()
    lost = [t.event for t in told() if t.event.reason == "DeviceLost"]
    assert [GPU in event.message for event in lost] == [True]
    passed = [t.event.message for t in told() if t.event.reason == "DevicesPassed"]
    assert passed == [f"the machine has {GPU}"]
    await driver.manager.delete("s1", "")
    check_untouched(world)
    await driver.close()


async def test_devices_that_are_had_are_counted() -> None:
    driver = await begun(host())

    def counted() -> tuple[float, ...]:
        values = seen.of_core(driver.core, 1000, 4096)
        wanted = seen.DEVICES, seen.DEVICE_LIMIT
        return tuple(v.number for w in wanted for v in values if v.shown is w)

    assert counted() == (0, 3)
    await created(driver)
    assert counted() == (2, 3), "its sound goes along"
    await driver.manager.stop("s1", "")
    assert counted() == (0, 3)
    await driver.close()


class Shaper(Extension):
    """Changes the request, as extensions may."""

    name: ClassVar[str] = "shaper"

    def __init__(self, *devices: str) -> None:
        self.devices = list(devices)

    async def prepare_plan(self, context: Any, draft: Any) -> None:
        draft.set_label("seen-by", "shaper")
        if self.devices:
            draft.set("template.driver_config", self.devices, key="devices")


async def test_an_extension_that_changes_a_request_takes_no_gpu_from_it() -> None:
    driver = await begun(host(), extensions=(Shaper(),))
    await created(driver)
    assert driver.record().spec.labels["seen-by"] == "shaper"
    assert driver.plan().devices == (GPU,)
    await driver.manager.delete("s1", "")
    await driver.close()


@pytest.mark.parametrize(
    ("device", "reason"), [(CARD, ""), (OTHER, "DeviceNotAllowed")]
)
async def test_an_extension_asks_for_devices_as_a_request_does(
    device: str, reason: str
) -> None:
    driver = await begun(host(), extensions=(Shaper(device),))
    if reason:
        with pytest.raises(DriverError) as refused:
            await created(driver, resources=Resources())
        assert refused.value.reason == reason
    else:
        await created(driver, resources=Resources())
        assert driver.plan().devices == (CARD,)
        await driver.manager.delete("s1", "")
    await driver.close()


# --- what cannot be together with devices


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resources": Resources(gpus=4)}, "GpuUnsupported"),
        ({"resources": Resources(gpus=2)}, "NoDeviceFree"),
        ({"driver_config": {"devices": [OTHER]}}, "DeviceNotAllowed"),
        ({"driver_config": {"on_stop": "suspend"}}, "DevicePassedThrough"),
    ],
)
async def test_what_cannot_be_had_is_refused_at_once(
    changes: dict[str, Any], reason: str
) -> None:
    driver = await begun(host())
    wanted = spec(**{"resources": ONE, **changes})
    for ask in (driver.manager.validate(wanted), driver.manager.create(wanted, None)):
        with pytest.raises(DriverError) as refused:
            await ask
        assert refused.value.reason == reason
    assert not driver.sandboxes()
    await driver.close()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("3b:00.0", "must be a list"),
        ([7], "must be a string"),
        (["3b:00"], "is no PCI address"),
        ([GPU, "3b:00.0"], "a second time"),
        (["00010000:3b:00.0"], "none above ffff"),
    ],
)
async def test_what_is_no_list_of_addresses_is_told_with_its_place(
    asked: object, says: str
) -> None:
    driver = await begun(host())
    with pytest.raises(InvalidRequest, match=says) as refused:
        await driver.manager.validate(spec(driver_config={"devices": asked}))
    assert "template.driver_config.devices" in refused.value.message
    await driver.close()


async def test_without_kvm_or_a_list_there_are_none() -> None:
    emulated = await begun(World(pci=dict(HOST)))
    with pytest.raises(Refused) as refused:
        await created(emulated)
    assert refused.value.reason == "DevicesNeedKvm"
    await created(emulated, resources=Resources())
    await emulated.close()
    closed = await begun(host(), SETTINGS)
    with pytest.raises(Refused) as refused:
        await created(closed)
    assert refused.value.reason == "GpuUnsupported"
    await closed.close()


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"resources": ONE}, "GpuUnsupported"),
        (
            {"resources": Resources(), "driver_config": {"devices": [GPU]}},
            "DeviceNotAllowed",
        ),
    ],
)
async def test_nobody_waits_for_a_device_that_is_in_the_list_no_more(
    asked: dict[str, Any], reason: str
) -> None:
    world = host()
    driver = await begun(world)
    await created(driver, **asked)
    await driver.manager.stop("s1", "")
    await driver.close()
    again = await begun(world, dataclasses.replace(PASSING, passthrough_devices=()))
    with pytest.raises(Refused) as refused:
        await again.manager.start("s1", "")
    assert refused.value.reason == reason
    assert "passthrough_devices" in refused.value.resolution
    await again.close()


async def test_too_few_gpus_are_waited_for_only_where_others_have_them() -> None:
    driver = await begun(host())
    for gpus, way_out in ((2, "ask for fewer"), (1, "wait until another")):
        with pytest.raises(Exhausted) as refused:
            await created(driver, f"s{gpus}", resources=Resources(gpus=gpus))
            await created(driver, "late", resources=Resources(gpus=gpus))
        assert refused.value.resolution.startswith(way_out)
    await driver.close()


async def test_its_memory_is_never_kept_and_it_never_goes_on_from_anybodys() -> None:
    settings = dataclasses.replace(
        PASSING, templates_enabled=True, warm_pool=1, on_stop="suspend"
    )
    world = host()
    driver = await begun(world, settings)
    await created(driver)
    assert driver.plan().template is None
    found, worker = operations(driver)
    refusals: list[Callable[[], Any]] = [
        lambda: found.suspend(worker),
        lambda: found.create_snapshot(worker, "a", disk_only=False),
    ]
    for ask in refusals:
        with pytest.raises(Refused) as refused:
            await ask()
        assert refused.value.reason == "DevicePassedThrough"
        assert driver.phase() is Phase.RUNNING
    await found.create_snapshot(worker, "a", disk_only=True)
    assert world.pci[GPU].driver == VFIO
    assert driver.manager.templates.listed() == []
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.STOPPED, "whatever the operator's on_stop is"
    check_untouched(world)
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.plan().template is None
    await driver.close()


async def test_one_whose_ledger_cannot_be_read_keeps_its_devices_until_its_delete() -> (
    None
):
    world = host()
    driver = await begun(world)
    await created(driver)
    await driver.close()
    world.journals["s1"].insert(0, "{}")
    again = await begun(world)
    with pytest.raises(DriverError) as refused:
        await created(again, "s2")
    assert refused.value.reason == "NoDeviceFree"
    assert world.pci[GPU].driver == VFIO
    await again.manager.delete("s1", "")
    await eventually(lambda: not again.knows(), "it is not deleted")
    check_untouched(world)
    await created(again, "s2")
    assert again.phase("s2") is Phase.RUNNING
    await again.close()


async def test_one_that_cannot_be_read_takes_no_device_that_another_one_has() -> None:
    """Its record speaks of its last run; what it had then is somebody else's by now."""
    world = host()
    driver = await begun(world)
    await created(driver, "a")
    await driver.manager.stop("a", "")
    await created(driver, "b")
    await driver.close()
    world.journals["a"] = ["{}"]
    again = await begun(world)
    await again.settled()
    uid = again.plan("b").user.uid  # type: ignore[union-attr]
    await again.manager.delete("a", "")
    await eventually(lambda: not again.knows("a"), "it is not deleted")
    assert again.phase("b") is Phase.RUNNING
    assert world.groups == {7: uid}
    with pytest.raises(DriverError) as refused:
        await created(again, "c")
    assert refused.value.reason == "NoDeviceFree"
    await again.close()


# --- the crash matrix


async def perform(driver: FakeDriver, step: str) -> None:
    await lives.perform(driver, step, spec(resources=ONE))


async def run_until_crash(world: World, bomb: Bomb, steps: tuple[str, ...]) -> bool:
    driver = FakeDriver(world, bomb, settings=PASSING)

    async def play() -> None:
        for step in steps:
            await perform(driver, step)
        bomb.defuse()

    return await played_until_crash(driver, bomb, play)


@pytest.mark.parametrize("bombs", [Bomb, BombAtCalls])
@pytest.mark.parametrize("name", lives.SHORT)
async def test_a_crash_anywhere_loses_no_device(name: str, bombs: type[Bomb]) -> None:
    steps, trial = lives.SEQUENCES[name], host()
    bomb = bombs(trial)
    assert not await run_until_crash(trial, bomb, steps)
    assert any(GPU in point for point in bomb.names) or bombs is BombAtCalls
    assert bomb.passed > 15
    for at in range(bomb.passed):
        world = host()
        assert await run_until_crash(world, bombs(world, at), steps), (
            f"no crash at {at}"
        )
        check_claimed(world, "device")
        driver = await begun(world)
        await driver.settled()
        check_claimed(world, "device")
        for step in steps:
            if step != "create" and not driver.knows():
                continue
            await perform(driver, step)
        gone = steps[-1] == "delete"
        if gone:
            assert world.objects() == set()
            check_untouched(world)
        else:
            assert driver.phase() is Phase.RUNNING, at
            assert world.groups == {7: driver.plan().user.uid}  # type: ignore[union-attr]
            await driver.manager.delete("s1", "")
        check_untouched(world)
        await driver.close()
