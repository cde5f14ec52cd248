"""Every resource there is: what one process acquired, or was killed at, another gives back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from tests.fakes.crashes import Bomb
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.journal import FakeJournal
from tests.fakes.settings import SETTINGS
from tests.fakes.world import Crash, World
from vmdriver.errors import DriverError
from vmdriver.lifecycle.engine.ledger import MACHINE, Held, Ledger, Scope
from vmdriver.lifecycle.engine.resource import (
    CHECKPOINT_PART,
    DEVICES,
    FILES,
    FIREWALL,
    FROZEN,
    HOST_MOUNTS,
    LAYER,
    LEASE,
    MACHINE_USER,
    MAPPED,
    OVERLAY,
    PAUSED,
    TAP,
    VOLUME_COPIES,
    VOLUMES,
    VOLUMES_BACK,
    WRITTEN,
    Given,
    Resources,
)
from vmdriver.lifecycle.extending.notes import PREFIXES, ExtensionEntries
from vmdriver.lifecycle.launch.resources import MachineSource, Part, take
from vmdriver.lifecycle.ports.host import Guard, no_crash_point
from vmdriver.model.devices import PciFunction
from vmdriver.model.host_mount import AllowedFolder
from vmdriver.model.ids import mark
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.record import SandboxRecord
from vmdriver.model.runs import Reason
from vmdriver.model.spec import Resources as Asked

LAUNCH = (MACHINE_USER, OVERLAY, FILES, TAP, DEVICES, FIREWALL, MACHINE)
HELD_STILL = (CHECKPOINT_PART, FROZEN, PAUSED)
NEEDS = {
    **{key: LAUNCH[:at] for at, key in enumerate(LAUNCH)},
    **dict.fromkeys((LAYER, MAPPED, *HELD_STILL), LAUNCH),
    WRITTEN: (*LAUNCH, *HELD_STILL),
    LEASE: (),
    VOLUMES: (MACHINE_USER,),
    VOLUME_COPIES: LAUNCH,
    VOLUMES_BACK: (),
    HOST_MOUNTS: (MACHINE_USER,),
}
"""What is there before each of them is acquired."""
GPU = {
    "0000:3b:00.0": PciFunction(
        "0000:3b:00.0", 0x030200, group=7, driver="nvidia", resettable=True
    )
}
PASSING = dataclasses.replace(
    SETTINGS,
    passthrough_devices=tuple(GPU),
    host_mounts=(AllowedFolder(path="/srv/models"),),
)
PART, IMAGE, MAPPED_AT = "s1/capture.part", "s1/suspended", "s1/mapped"


async def acquire(key: str, process: FakeDriver, ledger: Ledger, plan: Any) -> None:
    """Each as its room does it."""
    ports, domain = process.inside.ports, plan.domain
    one: Any = process.core.resources.of(key)
    match key:
        case "lease" | "machine-user":
            await one.acquire("s1", ledger)
        case "capture:image":
            await one.acquire(ledger, PART, 4096)
        case "capture:frozen":
            await ledger.acquire_in_turn([one.wanted(domain, 1.0, [].append)])
        case "capture:paused":
            await ledger.acquire_in_turn([one.wanted(domain)])
        case "capture:memory":
            capture = partial(ports.memory.capture, domain, f"{PART}/memory", 2048)
            await one.acquire(ledger, domain, capture)
        case "capture:layer":
            disk = plan.disk("root").model_copy(update={"path": "layers/s1.new.qcow2"})
            await one.acquire(ledger, disk, plan.user, running=True)
        case "capture:volumes" | "capture:volumes-back":
            await acquire_volumes(one, process, ledger, plan)
        case "mapped-memory":
            await one.acquire(ledger, IMAGE, MAPPED_AT)
        case _:
            assert isinstance(one, Part), f"say here how {key} is acquired"
            await take(ledger, [one], MachineSource(plan, mark("test", "s1")))


async def acquire_volumes(
    one: Any, process: FakeDriver, ledger: Ledger, plan: Any
) -> None:
    """For a snapshot, or to put them back from one."""
    ports, domain, volumes = process.inside.ports, plan.domain, process.core.volumes
    path = "layers/s1.new.raw"

    async def begin() -> None:
        await ports.volume_copies.begin(path, 64, plan.user, writes=True)
        await ports.memory.begin_copies(domain, {"volume0": path})

    if one.key == VOLUME_COPIES:
        await one.acquire(ledger, domain, [path], begin)
        return
    await volumes.look()
    if not volumes.all():
        await process.manager.volume_jobs.create("", "data", 64)
    await one.acquire(ledger, "s1", volumes.all(), "layers/s1.new.qcow2")


def state(world: World) -> Mapping[str, Any]:
    """All that a resource may leave behind. A checkpoint's name goes with its use."""
    images = set(world.checkpoints) - {IMAGE}
    return {
        "objects": world.objects(),
        "images": images,
        "machines": dict(world.domains),
        "frozen": set(world.frozen),
        "copied": dict(world.volumes.mirrors),
        "volumes of machines": {n for n, uids in world.volumes.writers.items() if uids},
    }


@dataclasses.dataclass(frozen=True)
class Stage:
    """A host on which everything is that comes before one resource."""

    key: str
    world: World
    plan: LaunchPlan
    record: SandboxRecord

    def process(self, crash_point: Guard = no_crash_point) -> tuple[FakeDriver, Ledger]:
        """A driver that begins, and has done nothing yet."""
        process = FakeDriver(self.world, crash_point)
        return process, Ledger(FakeJournal(self.world, "s1"), crash_point)

    async def acquire(self, crash_point: Guard = no_crash_point) -> None:
        process, ledger = self.process(crash_point)
        await acquire(self.key, process, ledger, self.plan)

    async def check_given_back(self, before: Mapping[str, Any]) -> None:
        """By a process that never acquired it, twice, and then no ledger speaks of it."""
        process, ledger = self.process()
        held = ledger.get(self.key)
        if held is not None:
            assert process.core.resources.can_be_undone(held)
            if self.key == LEASE:
                process.core.addresses.adopt("s1", self.plan.network.lease)
            if self.key == MACHINE_USER:
                process.core.users.adopt("s1", int(held.data["uid"]))
            for _ in range(2):
                await process.core.resources.release(
                    Given(held, "s1", ledger, self.record)
                )
                assert state(self.world) == before
            # Until the ledger says so too, it is nobody else's.
            assert (self._lessee(process) is not None) == (self.key == LEASE)
            assert (self._user_of(process) is not None) == (self.key == MACHINE_USER)
            await ledger.hand_over(self.key)
        assert self._lessee(process) is None
        assert self._user_of(process) is None

    def _lessee(self, process: FakeDriver) -> str | None:
        assert self.plan.network is not None
        return process.core.addresses.holder(self.plan.network.lease.index)

    def _user_of(self, process: FakeDriver) -> str | None:
        assert self.plan.user is not None
        return process.core.users.holder(self.plan.user.uid)


def host() -> World:
    """With KVM, a GPU and a folder to give."""
    return World(accelerator="kvm", pci=dict(GPU), host_paths={"/srv/models"})


async def stage(key: str) -> Stage:
    driver = FakeDriver(host(), settings=PASSING)
    await driver.manager.recover()
    volumes = [{"name": "data", "mount": "/data", "size_mib": 64}]
    folders = [{"path": "/srv/models", "mount": "/models"}]
    asked = {VOLUMES: {"volumes": volumes}, HOST_MOUNTS: {"host_mounts": folders}}
    config = asked.get(key, {})
    await driver.manager.create(
        spec(resources=Asked(gpus=1), driver_config=config), None
    )
    await driver.settled()
    record, plan = driver.record(), driver.plan()
    await driver.close()
    world = host()
    world.checkpoints[IMAGE] = "{}"
    made = Stage(key, world, plan, record)
    process, ledger = made.process()
    for earlier in NEEDS[key]:
        await acquire(earlier, process, ledger, plan)
    return made


def resources() -> Resources:
    return FakeDriver(World()).core.resources


def test_none_is_forgotten_here() -> None:
    assert set(resources().keys()) == {*NEEDS, *PREFIXES}


@pytest.mark.parametrize("key", NEEDS)
async def test_another_process_gives_it_back(key: str) -> None:
    made = await stage(key)
    before = state(made.world)
    await made.acquire()
    await made.check_given_back(before)


@pytest.mark.parametrize("key", NEEDS)
async def test_a_kill_at_any_crash_point_of_the_acquisition_leaves_what_can_be_given_back(
    key: str,
) -> None:
    ready = await stage(key)
    before = state(ready.world)
    bomb = Bomb(copy.deepcopy(ready.world))
    await dataclasses.replace(ready, world=bomb.world).acquire(bomb)
    assert bomb.passed >= 4, "intent, effect and outcome"
    for at in range(bomb.passed):
        made = dataclasses.replace(ready, world=copy.deepcopy(ready.world))
        with pytest.raises(Crash):
            await made.acquire(Bomb(made.world, at))
        await made.check_given_back(before)


@pytest.mark.parametrize("key", NEEDS)
async def test_an_acquisition_that_fails_at_any_call_leaves_what_can_be_given_back(
    key: str,
) -> None:
    ready = await stage(key)
    before, trial = state(ready.world), copy.deepcopy(ready.world)
    trial.calls.clear()
    await dataclasses.replace(ready, world=trial).acquire()
    for at, call in enumerate(trial.calls):
        world = copy.deepcopy(ready.world)
        world.calls.clear()
        world.fail = lambda _call, world=world, at=at: len(world.calls) == at + 1
        made = dataclasses.replace(ready, world=world)
        with pytest.raises(DriverError):
            await made.acquire()
        assert world.calls[-1] == call
        world.fail = lambda _call: False
        await made.check_given_back(before)


@pytest.mark.parametrize("key", NEEDS)
async def test_it_is_given_back_where_nothing_of_it_was_ever_there(key: str) -> None:
    """The machine that holds the rest has gone, or the host was restarted."""
    made = await stage(key)
    await made.acquire()
    _, ledger = made.process()
    held = ledger.get(key)
    assert held is not None
    world = World(journals=made.world.journals)
    process, ledger = dataclasses.replace(made, world=world).process()
    for done in (True, False):
        entry = dataclasses.replace(held, done=done)
        await process.core.resources.release(Given(entry, "s1", ledger, made.record))
    assert world.objects() == set()


@pytest.mark.parametrize("key", sorted({*NEEDS} - {LEASE, WRITTEN}))
async def test_an_entry_that_does_not_say_all_that_is_needed_is_noticed(
    key: str,
) -> None:
    made = await stage(key)
    await made.acquire()
    process, ledger = made.process()
    held = ledger.get(key)
    assert held is not None
    for name in EARLIER[key]:
        less = {k: v for k, v in held.data.items() if k != name}
        for data in (less, {**less, name: None}, {**less, name: 7}):
            entry = dataclasses.replace(held, data=data)
            assert not process.core.resources.can_be_undone(entry), data
    more = dataclasses.replace(held, data={**held.data, "of_another_release": 1})
    assert process.core.resources.can_be_undone(more)


EARLIER: Mapping[str, Mapping[str, Any]] = {
    LEASE: {
        "index": 3,
        "host_ip": "10.0.128.13",
        "guest_ip": "10.0.128.14",
        "prefix_length": 30,
        "mac": "02:00:00:00:00:03",
        "tap": "vmd-3",
    },
    MACHINE_USER: {"uid": "250002"},
    OVERLAY: {"path": "layers/s1.1.qcow2"},
    FILES: {"seed": "s1/seed.img"},
    TAP: {"tap": "vmd-3", "mark": "vmdriver:test/s1", "guest_ip": ""},
    DEVICES: {"functions": '[{"address": "0000:3b:00.0", "group": 7}]'},
    FIREWALL: {"tap": "vmd-3"},
    MACHINE: {"domain": "vmd-test-s1"},
    MAPPED: {"directory": MAPPED_AT},
    CHECKPOINT_PART: {"directory": PART},
    FROZEN: {"domain": "vmd-test-s1"},
    PAUSED: {"domain": "vmd-test-s1"},
    WRITTEN: {"domain": "vmd-test-s1"},
    LAYER: {"path": "layers/s1.2.qcow2"},
    VOLUMES: {"ids": "0123456789abcdef0123456789abcdef", "uid": "250002"},
    VOLUME_COPIES: {"domain": "vmd-test-s1", "paths": '["layers/s1.3.raw"]'},
    VOLUMES_BACK: {
        "ids": "0123456789abcdef0123456789abcdef",
        "layer": "layers/s1.2.qcow2",
        "ready": "",
    },
    HOST_MOUNTS: {"mark": "vmdriver/test/s1", "directory": "s1/folders"},
}
"""As 0.1.0 wrote them, and releases after it what is newer. No release renames a key or a field, since ledgers of any age are read."""


def test_keys_and_data_are_those_of_earlier_releases() -> None:
    known = resources()
    assert set(EARLIER) == set(NEEDS)
    for key, data in EARLIER.items():
        assert known.can_be_undone(Held(key, Scope.RUNTIME, data)), key


@pytest.mark.parametrize("key", NEEDS)
async def test_a_new_entry_says_what_earlier_releases_read(key: str) -> None:
    made = await stage(key)
    await made.acquire()
    _, ledger = made.process()
    held = ledger.get(key)
    assert held is not None
    assert set(EARLIER[key]) <= set(held.data)


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_an_extensions_entry_is_its_runners(prefix: str) -> None:
    made = await stage(LEASE)
    _, ledger = made.process()
    asked: list[tuple[str, str, Reason]] = []

    async def undo(
        record: SandboxRecord, _ledger: Ledger, held: Held, reason: Reason
    ) -> None:
        asked.append((record.id, held.key, reason))

    resources = Resources([ExtensionEntries(prefix, undo)])
    held = Held(f"{prefix}audit", Scope.RUNTIME, {"extension": "audit"})
    await resources.release(Given(held, "s1", ledger, made.record, Reason.SUSPENDED))
    assert asked == [("s1", held.key, Reason.SUSPENDED)]
    assert resources.can_be_undone(held)
    assert not resources.can_be_undone(dataclasses.replace(held, data={}))


async def test_an_entry_that_nobody_knows_is_neither_refused_nor_forgotten() -> None:
    """Of a later release, for one: its sandbox is taken up, and cannot be taken down."""
    made = await stage(LEASE)
    process, ledger = made.process()
    held = Held("of-another-release", Scope.RUNTIME, {})
    assert process.core.resources.can_be_undone(held)
    with pytest.raises(LookupError, match="of-another-release"):
        await process.core.resources.release(Given(held, "s1", ledger, made.record))
