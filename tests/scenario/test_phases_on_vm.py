"""Extensions that follow phases, on the VM driver: beside those that follow hooks, and after crashes."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import BaseModel

from tests.fakes.crashes import Bomb, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from vmdriver._proto import admin_pb2
from vmdriver.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    Refused,
    StorageError,
    Unavailable,
)
from vmdriver.extension import (
    CallPoint,
    Extension,
    LifecycleExtension,
    OnRequest,
    Until,
)
from vmdriver.extensions.loader import load_extensions
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.extending.call_points import HOOKS_OF
from vmdriver.lifecycle.extending.participants import Registered
from vmdriver.model import phase as model_phase
from vmdriver.service.admin import Admin
from vmdriver.service.servicer import Readiness

LOG: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


class Follower(Extension):
    """Writes down every phase; holds one thing for the sandbox and one for each run. `taken`
    is what it has outside, which survives the driver.
    """

    def __init__(self, name: str, world: World, taken: set[str], broken: str = ""):
        self.name = name  # type: ignore[misc]
        self.world, self.taken, self.broken = world, taken, broken

    def note(self, context: Any, *more: Any) -> None:
        LOG.append((self.name, context.phase.value, *more))
        if self.broken == context.phase.value:
            raise Refused("not today", reason="NotToday")

    def act(self, what: str, *, take: bool) -> None:
        self.world.act(f"{'take' if take else 'give'} {what}")
        (self.taken.add if take else self.taken.discard)(what)

    async def validate_request(self, context):
        self.note(context)

    async def prepare_plan(self, context, draft):
        self.note(context)

    async def before_create(self, context, draft):
        await context.hold("address", f"{self.name}-stay")
        self.act(f"{self.name}-stay", take=True)
        draft.set_environment(f"{self.name}_ADDRESS".upper(), "10.9.9.9")
        self.note(context)

    async def after_create(self, context):
        self.note(context)

    async def on_create_failed(self, context):
        self.note(context, tuple(h.name for h in context.held))

    async def before_start(self, context):
        await context.hold("port", f"{self.name}-run", until=Until.STOP)
        self.act(f"{self.name}-run", take=True)
        self.note(context, context.restore and context.restore.value)

    async def after_ready(self, context):
        self.note(context, context.restore and context.restore.value)

    async def before_stop(self, context):
        self.note(context)

    async def after_stop(self, context):
        self.note(context, tuple(h.name for h in context.held))

    async def before_delete(self, context):
        self.note(context)

    async def after_delete(self, context):
        self.note(context)

    async def reconcile(self, context):
        self.note(context, tuple(h.name for h in context.held))

    async def undo(self, context, hold):
        self.act(hold.name, take=False)
        LOG.append((self.name, "undo", hold.name))
        if self.broken == "undo":
            raise Refused("cannot give it back", reason="Stuck")


class Hook(LifecycleExtension):
    """Its counterpart of the older kind."""

    def __init__(self, name: str, vcpus: int | None = None) -> None:
        self.name = name  # type: ignore[misc]
        self.vcpus = vcpus

    async def configure_launch(self, context, draft):
        if self.vcpus:
            draft.set_vcpus(self.vcpus)
        LOG.append((self.name, "configure_launch"))

    async def before_launch(self, context, plan, environment):
        LOG.append((self.name, "before_launch"))

    async def after_launch_failed(self, context, reason):
        LOG.append((self.name, "after_launch_failed"))

    async def after_delete(self, context):
        LOG.append((self.name, "after_delete"))


def mixed(world: World, taken: set[str]) -> list[Registered]:
    return [Follower("a", world, taken), Hook("b"), Follower("c", world, taken)]


async def up(driver: FakeDriver, **changes: Any) -> FakeDriver:
    await driver.manager.recover()
    await driver.manager.create(spec(**changes), None)
    await driver.settled()
    return driver


def calls(*phases: str) -> list[tuple[str, str]]:
    return [entry[:2] for entry in LOG if not phases or entry[1] in phases]


async def test_both_kinds_side_by_side_in_order_and_back() -> None:
    world, taken = World(), set[str]()
    driver = await up(FakeDriver(world, extensions=mixed(world, taken)))
    assert calls() == [
        *(("a", "validate_request"), ("c", "validate_request")),
        *(("a", "prepare_plan"), ("c", "prepare_plan")),
        *(("a", "before_create"), ("c", "before_create")),
        *(("a", "after_create"), ("c", "after_create")),
        ("b", "configure_launch"),
        *(("a", "before_start"), ("b", "before_launch"), ("c", "before_start")),
        *(("a", "after_ready"), ("c", "after_ready")),
    ]
    assert taken == {"a-stay", "a-run", "c-stay", "c-run"}
    assert world.seeds["s1"][0]["A_ADDRESS"] == "10.9.9.9"
    LOG.clear()
    await driver.manager.stop("s1", "")
    assert [
        *(("a", "before_stop"), ("c", "before_stop")),
        *(("c", "after_stop", ("c-stay", "c-run")), ("c", "undo", "c-run")),
        ("b", "after_launch_failed"),
        *(("a", "after_stop", ("a-stay", "a-run")), ("a", "undo", "a-run")),
    ] == LOG
    LOG.clear()
    await driver.manager.delete("s1", "")
    assert [
        *(("a", "before_delete"), ("c", "before_delete")),
        ("b", "after_delete"),
        *(("c", "after_delete"), ("c", "undo", "c-stay")),
        *(("a", "after_delete"), ("a", "undo", "a-stay")),
    ] == LOG
    assert not taken
    await driver.close()


async def test_a_run_says_which_return_it_is() -> None:
    world, taken = World(), set[str]()
    driver = await up(FakeDriver(world, extensions=[Follower("a", world, taken)]))
    worker, operations = driver.worker(), Operations(driver.manager)
    await driver.manager.stop("s1", "")
    await driver.manager.start("s1", "")
    await driver.settled()
    await operations.suspend(worker)
    assert taken == {"a-stay"}
    await operations.resume(worker)
    await driver.settled()
    restores = [e[2] for e in LOG if e[1] == "before_start"]
    assert restores == [None, "relaunched", "resumed"]
    assert [e[2] for e in LOG if e[1] == "after_ready"] == restores
    await driver.manager.delete("s1", "")
    assert not taken
    await driver.close()


async def test_a_new_process_reconciles_what_runs_and_what_rests_once() -> None:
    world, taken = World(), set[str]()
    first = await up(FakeDriver(world, extensions=[Follower("a", world, taken)]))
    await first.manager.create(spec("s2"), None)
    await first.manager.stop("s2", "")
    await first.kill()
    LOG.clear()
    second = FakeDriver(world, extensions=[Follower("a", world, taken)])
    await second.manager.recover()
    await second.settled()
    await asyncio.sleep(0.02)
    told = sorted(entry[2] for entry in LOG if entry[1] == "reconcile")
    assert told == [("a-stay",), ("a-stay", "a-run")]
    assert calls("after_ready") == [], "it was told before"
    await second.close()


@pytest.mark.parametrize("phase", ["validate_request", "prepare_plan", "before_create"])
async def test_a_refused_create_leaves_nothing_and_can_be_repeated(phase: str) -> None:
    world, taken = World(), set[str]()
    bad = Follower("c", world, taken, broken=phase)
    driver = FakeDriver(world, extensions=[Follower("a", world, taken), bad])
    await driver.manager.recover()
    with pytest.raises(Refused, match="not today"):
        await driver.manager.create(spec(), None)
    assert not taken
    assert not world.records
    assert not world.journals.get("s1")
    assert driver.manager.statuses() == []
    failed = [e for e in LOG if e[1] == "on_create_failed"]
    if phase == "before_create":
        assert failed == [
            ("c", "on_create_failed", ("c-stay",)),
            ("a", "on_create_failed", ("a-stay",)),
        ]
    else:
        assert not failed, "nothing had begun"
    assert not calls("after_delete")
    bad.broken = ""
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert driver.phase() is model_phase.Phase.RUNNING
    await driver.close()


async def test_a_validation_asks_and_does_nothing() -> None:
    world, taken = World(), set[str]()
    driver = FakeDriver(world, extensions=mixed(world, taken))
    await driver.manager.recover()
    await driver.manager.validate(spec())
    assert calls() == [
        *(("a", "validate_request"), ("c", "validate_request")),
        *(("a", "prepare_plan"), ("c", "prepare_plan")),
    ]
    assert not taken
    await driver.close()


@pytest.mark.parametrize("phase", ["before_stop", "before_delete"])
async def test_a_stop_or_delete_can_be_refused(phase: str) -> None:
    world, taken = World(), set[str]()
    bad = Follower("a", world, taken, broken=phase)
    driver = await up(FakeDriver(world, extensions=[bad]))
    end = driver.manager.stop if phase == "before_stop" else driver.manager.delete
    with pytest.raises(Refused, match="not today"):
        await end("s1", "")
    await driver.settled()
    assert driver.phase() is model_phase.Phase.RUNNING
    if phase == "before_stop":
        with pytest.raises(Refused, match="not today"):
            await Operations(driver.manager).suspend(driver.worker())
    bad.broken = ""
    await end("s1", "")
    await driver.manager.delete("s1", "")
    assert not taken
    await driver.close()


# --- crashes


async def live(driver: FakeDriver) -> None:
    """A whole life, as a gateway that tries again would have it."""
    manager = driver.manager
    try:
        await manager.create(spec(), None)
    except AlreadyExists:
        pass
    except Unavailable:  # an earlier create of it is being given back
        await driver.gone()
        await manager.create(spec(), None)
    await driver.settled()
    await manager.stop("s1", "")
    await manager.start("s1", "")
    await driver.settled()
    await manager.delete("s1", "")


async def test_after_a_kill_at_any_moment_nothing_is_left_outside() -> None:
    trial, taken = World(), set[str]()
    bomb = Bomb(trial)
    driver = FakeDriver(trial, bomb, extensions=mixed(trial, taken))
    assert not await played_until_crash(driver, bomb, lambda: live(driver))
    assert bomb.passed > 60
    assert sum("hold:" in name for name in bomb.names) >= 20
    for at in range(bomb.passed):
        world, taken = World(), set[str]()
        bomb = Bomb(world, at)
        first = FakeDriver(world, bomb, extensions=mixed(world, taken))
        assert await played_until_crash(first, bomb, lambda first=first: live(first))
        second = FakeDriver(world, extensions=mixed(world, taken))
        await second.manager.recover()
        await second.settled()
        if not second.knows():
            assert not taken, f"a create that was never accepted left {taken} at {at}"
        await live(second)
        assert not taken, f"left after a kill at {at}"
        assert world.objects() == set()
        await second.close()


async def test_what_cannot_be_given_back_is_shown_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "vmdriver.lifecycle.engine.giving_back.backoff_s", lambda _count: 0.01
    )
    world, taken = World(), set[str]()
    stuck = Follower("a", world, taken, broken="undo")
    driver = await up(FakeDriver(world, extensions=[stuck]))
    await driver.manager.stop("s1", "")
    assert driver.phase() is model_phase.Phase.STOPPED
    (orphan,) = [held for held in (await shown(driver)).held if held.orphan]
    assert (orphan.extension, orphan.name, orphan.until) == ("a", "a-run", "stop")
    assert "cannot give it back" in orphan.problem
    stuck.broken = ""
    async with asyncio.timeout(5):
        while any(h.orphan for h in (await shown(driver)).held):
            await asyncio.sleep(0.01)
    assert [
        held.name for held in (await shown(driver)).held if held.kind != "call"
    ] == ["a-stay"]
    await driver.manager.delete("s1", "")
    await driver.close()


async def test_of_an_extension_that_is_not_loaded_what_is_held_waits_for_it() -> None:
    world, taken = World(), set[str]()
    first = await up(FakeDriver(world, extensions=[Follower("a", world, taken)]))
    await first.close()
    second = FakeDriver(world)
    await second.manager.recover()
    deleting = asyncio.create_task(second.manager.delete("s1", ""))
    async with asyncio.timeout(5):
        while not second.owed():
            await asyncio.sleep(0.01)
    assert "is not loaded" in second.owed()
    assert not world.domains, "the machine is down"
    names = {h.name for h in (await shown(second)).held if h.orphan}
    assert {"a-run", "a-stay"} <= names
    deleting.cancel()
    await second.close()
    third = FakeDriver(world, extensions=[Follower("a", world, taken)])
    await third.manager.recover()
    async with asyncio.timeout(5):
        while third.sandboxes():
            await asyncio.sleep(0.01)
    assert not taken
    assert world.objects() == set()
    await third.close()


async def test_a_create_that_a_full_disk_cut_off_is_not_in_the_way_of_the_next() -> (
    None
):
    world, taken = World(), set[str]()
    driver = FakeDriver(world, extensions=[Follower("a", world, taken)])
    await driver.manager.recover()
    storing = {"save record", "append to journal", "rewrite journal"}

    def full(call: str) -> bool:
        if call in storing and bool(world.records):
            raise StorageError("no space left", reason="DiskFull")
        return False

    world.fail = full
    with pytest.raises(StorageError, match="no space left"):
        async with asyncio.timeout(5):
            await driver.manager.create(spec(), None)
    assert driver.manager.statuses() == []
    world.fail = lambda _: False
    async with asyncio.timeout(5):
        while driver.sandboxes():
            await asyncio.sleep(0.01)
    assert world.records == {}
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert driver.phase() is model_phase.Phase.RUNNING
    await driver.close()


async def test_an_undo_that_fails_keeps_a_refused_create_out_of_sight() -> None:
    world, taken = World(), set[str]()
    bad = Follower("a", world, taken, broken="undo")
    late = Follower("c", world, taken, broken="before_create")
    driver = FakeDriver(world, extensions=[bad, late])
    await driver.manager.recover()
    creating = asyncio.create_task(driver.manager.create(spec(), None))
    async with asyncio.timeout(5):
        while not driver.knows():
            await asyncio.sleep(0.01)
        while not driver.owed():
            await asyncio.sleep(0.01)
    assert driver.manager.statuses() == []
    with pytest.raises(NotFound):
        driver.core.sandboxes.find("s1", "")
    with pytest.raises(Unavailable, match="being given back"):
        await driver.manager.create(spec(), None)
    bad.broken = ""
    with pytest.raises(Refused, match="not today"):
        await creating
    assert not driver.sandboxes()
    await driver.close()


# --- plans


class Shaper(Extension):
    """Changes what it is told to."""

    def __init__(self, name: str, *changes: tuple[str, Any, str]) -> None:
        self.name = name  # type: ignore[misc]
        self.changes = changes

    async def prepare_plan(self, context, draft):
        for field, value, key in self.changes:
            draft.set(field, value, key)


async def test_the_plan_is_shaped_once_and_for_every_run() -> None:
    shaper = Shaper(
        "a",
        ("plan.vcpus", 3, ""),
        ("template.resources.memory_limit", "768Mi", ""),
        ("template.image", "example.org/other:2", ""),
        ("template.labels", "large", "example.org/pool"),
        ("spec.environment", "1", "STAMP"),
        ("template.driver_config", "suspend", "on_stop"),
        ("plan.guest_init_dropins", "#!/bin/sh\n", "10-it"),
        ("plan.required_features", True, "tap-networking"),
        ("plan.kernel_profile", "fast", ""),
    )
    driver = await up(FakeDriver(World(), extensions=[shaper, Hook("b", vcpus=3)]))
    record = driver.record()
    assert (record.plan.vcpus, record.plan.memory_mib) == (3, 768)
    assert record.plan.image == "example.org/other:2"
    assert record.plan.kernel_profile == "fast"
    assert record.plan.drop_ins[0].extension == "a"
    assert record.plan.required_features == ("tap-networking",)
    assert record.spec.labels == {"example.org/pool": "large"}
    assert driver.world.seeds["s1"][0]["STAMP"] == "1"
    await driver.manager.stop("s1", "")
    assert driver.phase() is model_phase.Phase.SUSPENDED
    shaper.changes = ()
    await Operations(driver.manager).resume(driver.worker(), cold=True)
    await driver.settled()
    assert driver.plan().vcpus == 3
    await driver.close()


async def test_a_phase_and_a_hook_that_set_one_value_differently_are_both_named() -> (
    None
):
    shaper = Shaper("a", ("plan.vcpus", 2, ""))
    driver = await up(FakeDriver(World(), extensions=[shaper, Hook("b", vcpus=3)]))
    message = driver.failure().message
    assert "'a'" in message
    assert "'b'" in message
    assert "vcpus" in message
    await driver.close()


@pytest.mark.parametrize(
    ("field", "value", "key", "why"),
    [
        ("plan.vcpus", 0, "", "must be at least 1"),
        ("plan.vcpus", "many", "", "must be a whole number"),
        ("plan.kernel", "/no/such/kernel", "", "is not a file"),
        ("plan.disks", (), "", "is not a field that may be changed"),
        ("spec.environment", "x", "OPENSHELL_ENDPOINT", "belongs to OpenShell"),
        ("spec.environment", "x", "PATH", "belongs to the driver"),
        ("template.environment", "x", "A", "is not a field that may be changed"),
        ("template.image", 7, "", "image to what it cannot be"),
        ("sandbox.id", "s2", "", "is the gateway's"),
        ("template.resources.memory_limit", "much", "", "memory_limit"),
        ("template.resources.memory_limit", "1Mi", "", "too few"),
    ],
)
async def test_what_may_not_be_changed_is_refused_before_anything_is_done(
    field: str, value: Any, key: str, why: str
) -> None:
    driver = FakeDriver(World(), extensions=[Shaper("a", (field, value, key))])
    await driver.manager.recover()
    for ask in (driver.manager.validate, lambda s: driver.manager.create(s, None)):
        with pytest.raises((Refused, InvalidRequest), match=re.escape(why)):
            await ask(spec())
    assert not driver.world.records
    await driver.close()


# --- who takes part


class Size(BaseModel):
    size: int = 1


class Sized(Extension):
    name = "sized"
    activation = OnRequest("size-me")
    parameters = Size

    async def before_start(self, context):
        LOG.append((self.name, context.parameters, context.config))


LABEL = "openshell.io/extension.size-me"


async def test_parameters_come_from_labels_and_where_allowed_from_the_request() -> None:
    driver = FakeDriver(
        World(),
        extensions=[Sized()],
        extension_configs={"sized": {"pool": "x"}},
        may_configure=frozenset({"sized"}),
    )
    await up(driver, labels={LABEL: "yes", f"{LABEL}.size": "4"})
    asked = {"extensions": {"sized": {"size": 9}}}
    await driver.manager.create(
        spec("s2", labels={LABEL: "on"}, driver_config=asked), None
    )
    await driver.settled()
    assert [
        ("sized", Size(size=4), {"pool": "x"}),
        ("sized", Size(size=9), {"pool": "x"}),
    ] == LOG
    schema = (await shown(driver)).driver_config_schema
    assert '"size"' in schema
    await driver.close()


@pytest.mark.parametrize(
    ("labels", "config", "why"),
    [
        ({"openshell.io/extension.other": "yes"}, {}, "no extension of that key"),
        ({LABEL: "yes", f"{LABEL}.size": "x"}, {}, "sized.size"),
        ({f"{LABEL}.size": "1"}, {}, "is not asked for"),
        ({LABEL: "yes"}, {"sized": {"size": 1}}, "does not let requests"),
        ({}, {"other": {}}, "no extension of that name"),
    ],
)
async def test_what_is_asked_for_and_cannot_be_given_refuses_the_create(
    labels: dict[str, str], config: dict[str, Any], why: str
) -> None:
    driver = FakeDriver(World(), extensions=[Sized(), Hook("b")])
    await driver.manager.recover()
    asked = spec(labels=labels, driver_config={"extensions": config} if config else {})
    with pytest.raises((Refused, InvalidRequest), match=re.escape(why)):
        await driver.manager.create(asked, None)
    await driver.close()


async def test_others_are_those_that_came_before() -> None:
    class Counting(Extension):
        name = "counting"

        async def validate_request(self, context):
            LOG.append(tuple(o.id for o in context.others))

    driver = await up(FakeDriver(World(), extensions=[Counting()]))
    await driver.manager.create(spec("s2"), None)
    await driver.manager.delete("s1", "")
    await driver.manager.create(spec("s3"), None)
    assert LOG == [(), ("s1",), ("s2",)]
    await driver.close()


# --- what is said of them


async def shown(driver: FakeDriver) -> Any:
    readiness = Readiness()
    readiness.set(driver.manager)
    request = admin_pb2.GetExtensionCapabilitiesRequest()
    return await Admin(
        readiness, driver.broadcaster, driver.pictures.now
    ).GetExtensionCapabilities(request, None)


async def test_discovery_shows_both_kinds() -> None:
    world = World()
    driver = await up(FakeDriver(world, extensions=mixed(world, set())))
    found = await shown(driver)
    assert [(e.name, e.kind) for e in found.extensions] == [
        ("a", "phases"),
        ("b", "hooks"),
        ("c", "phases"),
    ]
    assert list(found.phases) == [phase.value for phase in CallPoint]
    assert "before_fork" in found.hooks
    assert "plan.vcpus" in [point.field for point in found.mutation_points]
    assert list(found.extensions[0].sandboxes) == ["s1"]
    assert not [held for held in found.held if held.orphan]
    await driver.close()


def test_every_shipped_extension_loads_in_the_vm_driver() -> None:
    names = ["operator-drop-ins", "labels-and-placement", "audit-log", "gpu-claim"]
    assert [e.name for e in load_extensions(names, Registered)] == names


def test_the_table_of_the_documentation_is_the_one_in_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "extensions.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", text, re.MULTILINE)
    documented = {name: tuple(re.findall(r"`(\w+)`", hooks)) for name, hooks in rows}
    expected = {phase.value: HOOKS_OF.get(phase, ()) for phase in CallPoint}
    assert {name: documented.get(name) for name in expected} == expected


async def test_every_call_is_a_span_below_its_request_and_a_measurement() -> None:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([reader]))
    world, taken = World(), set[str]()
    broken = Follower("a", world, taken, broken="after_create")
    driver = FakeDriver(world, extensions=[broken, Hook("b")])
    await driver.manager.recover()
    identity = "0af7651916cd43dd8448eb211c80319c"
    parent = {"traceparent": f"00-{identity}-b7ad6b7169203331-01"}
    await driver.manager.create(spec(), None, parent)
    await driver.settled()
    await driver.close()
    found = {span.name: span for span in spans.get_finished_spans()}
    created = found["extension a.before_create"]
    assert format(created.context.trace_id, "032x") == identity
    assert (created.attributes or {})["sandbox"] == "s1"
    assert found["extension a.after_create"].status.is_ok is False
    assert "extension b.before_launch" in found
    data = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics[0]
    assert data.name == "vmdriver.extension.call.duration"
    outcomes = {
        ((p.attributes or {})["phase"], (p.attributes or {})["outcome"])
        for p in data.data.data_points
    }
    assert ("after_create", "failed") in outcomes
    assert ("before_launch", "ok") in outcomes
