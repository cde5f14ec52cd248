"""The composed driver in front of one that is not ours: what passes, what extensions add, outages, kills."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import BaseModel, ConfigDict

from tests.fakes.composed import World, composed, config, holding, until
from tests.fakes.eager import EAGER
from tests.fakes.process_driver import FUTURE, ProcessDriver
from tests.fakes.service import sandbox
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver._proto import compute_driver_pb2_grpc as pb_grpc
from vmdriver.compose.config import load
from vmdriver.errors import ConfigError, Exhausted
from vmdriver.extension import Call, CallPoint, Extension, OnRequest, Until
from vmdriver.service import admin_client

LOG: list[tuple[str, str]] = []
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


def settings(base: ProcessDriver, tmp_path: Path, **more: Any) -> Any:
    return config(base.socket, tmp_path / "c" / "c.sock", tmp_path / "s", **more)


def recorder(name: str, **methods: Any) -> Extension:
    """An extension that writes every phase down; `methods` replace some."""

    def note(phase: str) -> Any:
        async def method(self: Extension, context: Any, *_: Any) -> None:
            LOG.append((self.name, phase))

        return method

    async def undo(self: Extension, context: Any, hold: Any) -> None:
        LOG.append((self.name, f"undo {hold.name}"))

    body = {phase.value: note(phase.value) for phase in CallPoint}
    return type(name, (Extension,), {**body, "undo": undo, **methods, "name": name})()  # type: ignore[no-any-return]


def create(message: pb.DriverSandbox) -> pb.CreateSandboxRequest:
    return pb.CreateSandboxRequest(sandbox=message)


def struct(**values: Any) -> struct_pb2.Struct:
    found = struct_pb2.Struct()
    found.update(values)
    return found


def asking(**labels: str) -> pb.DriverSandbox:
    named = {f"openshell.io/extension.{k}": v for k, v in labels.items()}
    return sandbox(template=pb.DriverSandboxTemplate(image="i", labels=named))


@contextlib.asynccontextmanager
async def refused(code: grpc.StatusCode, *texts: str) -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is code, caught.value
    for text in texts:
        assert text in str(caught.value.details()), caught.value.details()


async def events_of(stub: Any, found: list[Any]) -> None:
    async for event in stub.WatchSandboxes(pb.WatchSandboxesRequest()):
        found.append(event)


IDS = pb.StopSandboxRequest(sandbox_id="s1", sandbox_name="name-s1")


async def test_without_extensions_everything_passes_as_it_is(
    base: ProcessDriver, tmp_path: Path
) -> None:
    async with composed(settings(base, tmp_path)) as (stub, _):
        request = create(sandbox(sandbox_token="secret"))
        unknown = b"\xfa\x3f\x03new"  # field 1023, of a contract to come
        raw = request.SerializeToString() + unknown
        channel = grpc.aio.insecure_channel(f"unix:{tmp_path / 'c' / 'c.sock'}")
        call: Any = channel.unary_unary(f"{FUTURE}CreateSandbox")
        await call(raw, metadata=(("traceparent", "00-1-2-03"), ("x-bin", b"\0")))
        assert base.asked().SerializeToString() == raw
        metadata = base.metadata_of("CreateSandbox")
        assert metadata["traceparent"] == "00-1-2-03"
        assert metadata["x-bin"] == b"\0"
        answer = await stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"))
        assert answer.sandbox == base.sandboxes["s1"]
        listed = await stub.ListSandboxes(pb.ListSandboxesRequest())
        assert list(listed.sandboxes) == [base.sandboxes["s1"]]
        future: Any = channel.unary_unary(f"{FUTURE}HibernateSandbox")
        assert await future(b"sleep") == b"back:sleep"
        async with refused(grpc.StatusCode.UNIMPLEMENTED):
            await stub.EnsureWorkspace(pb.EnsureWorkspaceRequest(workspace="w"))
        async with refused(grpc.StatusCode.NOT_FOUND, "no such process sandbox"):
            await stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s2"))
        found = await stub.GetCapabilities(pb.GetCapabilitiesRequest())
        assert found.driver_name == "process+vmdriver"
        assert found.driver_version == "7"
        await channel.close()
    assert not list((tmp_path / "s" / "sandboxes").iterdir())


async def test_phases_of_a_whole_life_in_order_and_back(
    base: ProcessDriver, tmp_path: Path
) -> None:
    async def hold(self: Extension, context: Any, _draft: Any) -> None:
        LOG.append((self.name, "before_create"))
        await context.hold("thing", f"{self.name}1")
        await context.hold("thing", f"{self.name}2")

    async def hold_run(self: Extension, context: Any) -> None:
        LOG.append((self.name, "before_start"))
        await context.hold("thing", f"{self.name}-run", until=Until.STOP)

    two = [recorder(n, before_create=hold, before_start=hold_run) for n in "ab"]
    events: list[Any] = []
    async with composed(settings(base, tmp_path), two) as (stub, composition):
        watching = asyncio.create_task(events_of(stub, events))
        await stub.CreateSandbox(create(sandbox()))
        await until(lambda: ("b", "after_ready") in LOG)
        await stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"))
        await stub.StopSandbox(IDS)
        await stub.StopSandbox(IDS)
        await stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"))
        await until(lambda: LOG.count(("b", "after_ready")) == 2)
        answer = await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        assert answer.deleted
        await until(lambda: composition.registry.get("s1") is None)
        await until(lambda: events[-1].WhichOneof("payload") == "deleted")
        watching.cancel()
        await asyncio.wait({watching})

    def both(*phases: str) -> list[tuple[str, str]]:
        return [(name, phase) for phase in phases for name in "ab"]

    end = [("b", "after_stop"), ("a", "after_stop"), ("b", "undo b-run")]
    end += [("a", "undo a-run")]
    log = [entry for entry in LOG if entry[1] != "reconcile"]
    begin = both("validate_request", "prepare_plan", "before_create", "before_start")
    assert log[:8] == begin
    assert sorted(log[8:12]) == sorted(both("after_create", "after_ready"))
    assert log[12:18] == both("before_stop") + end
    assert log[18:22] == both("before_start", "after_ready")
    gone = [("b", "after_delete"), ("a", "after_delete")]
    undone = [("b", "undo b2"), ("b", "undo b1"), ("a", "undo a2"), ("a", "undo a1")]
    assert log[22:] == both("before_delete") + end + gone + undone
    assert not list((tmp_path / "s" / "sandboxes").iterdir())


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
async def test_what_the_base_refuses_is_rolled_back_and_its_words_pass(
    base: ProcessDriver, tmp_path: Path, code: grpc.StatusCode
) -> None:
    def spoil(method: str, _request: Any, context: Any) -> None:
        if method == "CreateSandbox":
            context.set_trailing_metadata((("why-bin", b"\1"),))
            context.abort(code, "no room in the hall")

    base.spoil = spoil
    world = World(tmp_path / "world", 0)
    async with composed(settings(base, tmp_path), [world]) as (stub, composition):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CreateSandbox(create(sandbox()))
        assert caught.value.code() is code
        assert caught.value.details() == "no room in the hall"
        assert dict(caught.value.trailing_metadata() or ())["why-bin"] == b"\1"
        assert composition.registry.all() == []
        base.spoil = lambda *_: None
        await stub.CreateSandbox(create(sandbox()))
    assert holding(tmp_path / "world") == {"first", "second", "run"}


async def test_what_extensions_change_is_what_the_base_is_asked_for(
    base: ProcessDriver, tmp_path: Path
) -> None:
    async def shape(self: Extension, context: Any, draft: Any) -> None:
        draft.set_label("team", context.sandbox.workspace)
        draft.set_environment("REGION", "north")
        draft.set("template.image", "example.org/hardened:1")
        draft.set("template.resources.memory_limit", "2Gi")
        draft.set("template.driver_config", {"a": 1}, "extra")

    async with composed(
        settings(base, tmp_path), [recorder("shaper", prepare_plan=shape)]
    ) as (stub, _):
        config_ = struct(base={"flat": True}, extensions={})
        template = pb.DriverSandboxTemplate(image="i", driver_config=config_)
        message = sandbox(template=template, sandbox_token="t")
        await stub.ValidateSandboxCreate(
            pb.ValidateSandboxCreateRequest(sandbox=message)
        )
        await stub.CreateSandbox(create(message))
        asked = [
            r.sandbox for m, r in base.seen if m.endswith(("Create", "CreateSandbox"))
        ]
        assert asked[0] == asked[1], "validate asks for what create will ask for"
        spec = asked[1].spec
        assert dict(spec.template.labels) == {"team": "w"}
        assert dict(spec.environment) == {"REGION": "north"}
        assert spec.template.image == "example.org/hardened:1"
        assert spec.template.resources.memory_limit == "2Gi"
        assert spec.template.driver_config == struct(flat=True, extra={"a": 1})
        assert spec.sandbox_token == "t"
    for path in (tmp_path / "s").rglob("*"):
        assert not path.is_file() or path.read_text().strip() != "t"


@pytest.mark.parametrize(
    ("field", "value", "key", "why"),
    [
        ("sandbox.id", "x", "", "is the gateway's"),
        ("spec.sandbox_token", "x", "", "identity"),
        ("spec.command", ["x"], "", "main process"),
        ("spec.environment", "x", "OPENSHELL_ENDPOINT", "belongs to OpenShell"),
        ("template.labels", "x", "openshell.ai/managed", "gateway manages"),
        ("template.labels", "x", "", "name a key"),
        ("template.image", "x", "k", "has no keys"),
        ("made.up", "x", "", "not a field"),
    ],
)
async def test_what_must_not_be_changed_is_refused_with_names(
    base: ProcessDriver, tmp_path: Path, field: str, value: Any, key: str, why: str
) -> None:
    async def shape(self: Extension, context: Any, draft: Any) -> None:
        draft.set(field, value, key)

    async with (
        composed(
            settings(base, tmp_path), [recorder("shaper", prepare_plan=shape)]
        ) as (stub, _),
        refused(grpc.StatusCode.FAILED_PRECONDITION, "'shaper'", field, why),
    ):
        await stub.CreateSandbox(create(sandbox()))
    assert base.sandboxes == {}


async def test_two_that_disagree_and_one_that_is_late_are_refused(
    base: ProcessDriver, tmp_path: Path
) -> None:
    def setter(value: str) -> Any:
        async def shape(self: Extension, context: Any, draft: Any) -> None:
            draft.set("template.image", value)

        return shape

    pair = [
        recorder("a", prepare_plan=setter("x")),
        recorder("b", prepare_plan=setter("y")),
    ]
    async with (
        composed(settings(base, tmp_path), pair) as (stub, _),
        refused(grpc.StatusCode.FAILED_PRECONDITION, "'a'", "'b'", "template.image"),
    ):
        await stub.CreateSandbox(create(sandbox()))
    late = recorder("late", before_create=setter("x"))
    async with (
        composed(settings(base, tmp_path), [late]) as (stub, _),
        refused(grpc.StatusCode.FAILED_PRECONDITION, "not in before_create"),
    ):
        await stub.CreateSandbox(create(sandbox()))


async def test_the_flat_block_is_an_error_that_shows_the_new_shape(
    base: ProcessDriver, tmp_path: Path
) -> None:
    async with composed(settings(base, tmp_path)) as (stub, _):
        template = pb.DriverSandboxTemplate(
            image="i", driver_config=struct(gpu_device_ids=["0"])
        )
        async with refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            "template.driver_config.gpu_device_ids",
            '{"base": {"gpu_device_ids": ...}',
        ):
            await stub.CreateSandbox(create(sandbox(template=template)))


class Size(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int


def optional(**more: Any) -> Extension:
    extension = recorder("disk", parameters=Size, **more)
    extension.activation = OnRequest("disk")
    return extension


async def test_activation_is_fail_closed(base: ProcessDriver, tmp_path: Path) -> None:
    seen: list[Any] = []

    async def look(self: Extension, context: Any) -> None:
        seen.append(context.parameters)

    wide = settings(
        base,
        tmp_path,
        extensions=["disk"],
        request_parameters=["disk"],
        base_extensions=["inner"],
    )
    disk = optional(validate_request=look)
    denied, invalid = (
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    async with composed(wide, [disk]) as (stub, _):

        async def validate(message: pb.DriverSandbox) -> None:
            request = pb.ValidateSandboxCreateRequest(sandbox=message)
            await stub.ValidateSandboxCreate(request)

        await validate(sandbox())
        assert seen == [], "nobody asked for it"
        labels = {"disk": "yes", "disk.size": "7"}
        await validate(asking(**labels))
        assert seen == [Size(size=7)]
        async with refused(denied, "openshell.io/extension.tape", "installed"):
            await validate(asking(tape="enabled"))
        await validate(asking(inner="enabled", **{"inner.size": "1"}))
        async with refused(denied, "disk", "not asked for"):
            await validate(asking(**{"disk.size": "7"}))
        async with refused(invalid, "extensions.disk.size"):
            await validate(asking(**{"disk": "on", "disk.size": "seven"}))
        message = asking(disk="on")
        block = struct(extensions={"disk": {"size": 9}})
        message.spec.template.driver_config.CopyFrom(block)
        await validate(message)
        assert seen[-1] == Size(size=9)
        block = struct(extensions={"tape": {}})
        message.spec.template.driver_config.CopyFrom(block)
        async with refused(invalid, "extensions.tape", "installed"):
            await validate(message)
    async with composed(settings(base, tmp_path), [disk]) as (stub, _):
        message.spec.template.driver_config.CopyFrom(
            struct(extensions={"disk": {"size": 9}})
        )
        async with refused(denied, "operator", "request_parameters"):
            await stub.CreateSandbox(create(message))


async def test_a_label_ends_at_the_driver_that_has_its_extension(
    base: ProcessDriver, tmp_path: Path
) -> None:
    wide = settings(base, tmp_path, extensions=["disk"], base_extensions=["inner"])
    message = asking(**{"disk": "yes", "disk.size": "7", "inner": "yes"})
    message.spec.template.labels["team"] = "blue"
    async with composed(wide, [optional()]) as (stub, _):
        await stub.ValidateSandboxCreate(
            pb.ValidateSandboxCreateRequest(sandbox=message)
        )
        await stub.CreateSandbox(create(message))
    passed = {"team": "blue", "openshell.io/extension.inner": "yes"}
    for method in ("ValidateSandboxCreate", "CreateSandbox"):
        assert base.asked(method).sandbox.spec.template.labels == passed


async def test_an_extension_that_hangs_or_fails_refuses_with_its_name(
    base: ProcessDriver, tmp_path: Path
) -> None:
    async def hang(self: Extension, *_: Any) -> None:
        await asyncio.sleep(30)

    async def full(self: Extension, *_: Any) -> None:
        raise Exhausted("the quota of w is used up")

    calls: list[Call] = []

    async def observe(self: Extension, call: Call, config: Any) -> None:
        calls.append(call)

    slow, watcher = (
        recorder("slow", before_create=hang),
        recorder("log", observe=observe),
    )
    slow.timeout_s = 0.1
    async with (
        composed(settings(base, tmp_path), [watcher, slow]) as (stub, _),
        refused(grpc.StatusCode.FAILED_PRECONDITION, "'slow'", "0.1 s"),
    ):
        await stub.CreateSandbox(create(sandbox()))
    failed = [c for c in calls if c.error]
    assert [(c.extension, c.phase) for c in failed] == [("slow", "before_create")]
    assert ("log", "on_create_failed") in LOG
    quota = recorder("quota", validate_request=full)
    async with (
        composed(settings(base, tmp_path), [quota]) as (stub, _),
        refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota of w"),
    ):
        await stub.CreateSandbox(create(sandbox()))


async def test_an_outage_of_the_base_ends_nothing(
    base: ProcessDriver, tmp_path: Path
) -> None:
    events: list[Any] = []
    async with composed(settings(base, tmp_path), [recorder("a")]) as (stub, composed_):
        watching = asyncio.create_task(events_of(stub, events))
        for name in ("s1", "s2"):
            await stub.CreateSandbox(create(sandbox(name)))
        await until(lambda: LOG.count(("a", "after_ready")) == 2)
        await asyncio.to_thread(base.stop)
        before = len(events)
        async with refused(grpc.StatusCode.UNAVAILABLE, "not reachable"):
            await stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"))
        assert len(events) == before
        assert not watching.done()
        base.forget("s2")
        base.start()
        await until(
            lambda: any(
                e.deleted.sandbox_id == "s2" for e in events if e.HasField("deleted")
            )
        )
        await until(lambda: composed_.registry.get("s2") is None)
        assert ("a", "reconcile") in LOG
        assert ("a", "after_delete") in LOG
        base.condition("s1", "Ready", "False", "Starting")
        await until(lambda: events[-1].sandbox.sandbox.id == "s1")
        assert ("a", "after_stop") in LOG
        assert composed_.registry.get("s1").record.up
        answer = await stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"))
        assert answer.sandbox.id == "s1"
        watching.cancel()
        await asyncio.wait({watching})


async def test_a_composed_driver_can_be_the_base_of_another(
    base: ProcessDriver, tmp_path: Path
) -> None:
    inner = config(base.socket, tmp_path / "i" / "i.sock", tmp_path / "is", suffix="in")
    outer = config(
        inner.bind_socket, tmp_path / "o" / "o.sock", tmp_path / "os", suffix="out"
    )
    async with (
        composed(inner, [recorder("in")]),
        composed(outer, [recorder("out")]) as (stub, _),
    ):
        found = await stub.GetCapabilities(pb.GetCapabilitiesRequest())
        assert found.driver_name == "process+in+out"
        config_ = struct(base={"base": {"x": 1}})
        template = pb.DriverSandboxTemplate(image="i", driver_config=config_)
        await stub.CreateSandbox(create(sandbox(template=template)))
        assert base.asked().sandbox.spec.template.driver_config == struct(x=1)
        await until(lambda: {("in", "after_ready"), ("out", "after_ready")} <= set(LOG))
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await until(lambda: ("out", "after_delete") in LOG)
        order = [name for name, phase in LOG if phase == "before_create"]
        assert order == ["out", "in"]


async def test_what_cannot_be_undone_is_kept_shown_and_tried_again(
    base: ProcessDriver, tmp_path: Path
) -> None:
    broken = [True]

    async def hold(self: Extension, context: Any, _draft: Any) -> None:
        await context.hold("thing", "one")

    async def undo(self: Extension, context: Any, hold: Any) -> None:
        if broken[0]:
            raise RuntimeError("not now")
        LOG.append(("a", "undone"))

    extension = recorder("a", before_create=hold, undo=undo)
    events: list[Any] = []
    async with composed(settings(base, tmp_path), [extension]) as (stub, composition):
        watching = asyncio.create_task(events_of(stub, events))
        await stub.CreateSandbox(create(sandbox()))
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await until(
            lambda: any(
                e.platform_event.event.reason == "ExtensionCleanupFailed"
                for e in events
            )
        )
        watching.cancel()
        await asyncio.wait({watching})
    async with composed(settings(base, tmp_path)) as (_, composition):
        (found,) = composition.registry.all()  # its extension is not there any more
        await until(lambda: "not loaded" in found.trouble)
    broken[0] = False
    async with composed(settings(base, tmp_path), [extension]) as (_, composition):
        await until(lambda: not composition.registry.all())
    assert ("a", "undone") in LOG
    assert not list((tmp_path / "s" / "sandboxes").iterdir())


STEPS = 13
"""Lines that a create and a delete of the `World` extension write."""


@pytest.mark.parametrize("kill_at", range(1, STEPS + 1))
async def test_killed_at_any_step_nothing_is_left_over(
    base: ProcessDriver, tmp_path: Path, kill_at: int
) -> None:
    socket, state = tmp_path / "c" / "c.sock", tmp_path / "s"
    command = [sys.executable, "-m", "tests.fakes.composed", base.socket, socket, state]
    first = subprocess.Popen([*command, str(kill_at)], cwd=ROOT)
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=EAGER) as channel:
        stub: Any = pb_grpc.ComputeDriverStub(channel)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.CreateSandbox(create(sandbox()), wait_for_ready=True, timeout=20)
            await stub.StopSandbox(IDS, timeout=20)
            await stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"), timeout=20)
            await stub.DeleteSandbox(
                pb.DeleteSandboxRequest(sandbox_id="s1"), timeout=20
            )
    assert await asyncio.to_thread(first.wait, 20) == -signal.SIGKILL
    second = subprocess.Popen([*command, "0"], cwd=ROOT)
    try:
        path = f"unix:{socket}"
        async with grpc.aio.insecure_channel(path, options=EAGER) as channel:
            stub = pb_grpc.ComputeDriverStub(channel)
            await stub.DeleteSandbox(
                pb.DeleteSandboxRequest(sandbox_id="s1"),
                wait_for_ready=True,
                timeout=20,
            )
            left = state / "sandboxes"
            await until(lambda: not list(left.iterdir()))
    finally:
        second.terminate()
        await asyncio.to_thread(second.wait, 10)
    assert holding(state / "world") == set()
    assert base.sandboxes == {}


def test_the_configuration_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "compose.toml"
    path.write_text('bind_socket = "/run/c.sock"\n')
    with pytest.raises(ConfigError, match="base"):
        load(path, {})
    path.write_text('base = "unix:/b"\nbind_socket = "/c"\n[extension.x]\na = 1\n')
    with pytest.raises(ConfigError, match=r"extension\.x"):
        load(path, {})
    path.write_text('base = "unix:/b"\nbind_socket = "/c"\n')
    assert load(path, {"suffix": "w"}).suffix == "w"


# --- discovery


async def capabilities(tmp_path: Path) -> dict[str, Any]:
    socket = tmp_path / "s" / "run" / "admin.sock"
    return await asyncio.to_thread(admin_client.extension_capabilities, socket)


async def test_what_extensions_can_do_and_hold_can_be_asked_for(
    base: ProcessDriver, tmp_path: Path
) -> None:
    broken = [False]

    async def hold(self: Extension, context: Any, _draft: Any) -> None:
        await context.hold("thing", "one")

    async def undo(self: Extension, context: Any, hold: Any) -> None:
        if broken[0]:
            raise RuntimeError("not now")

    disk = optional(
        before_create=hold, undo=undo, required=frozenset({CallPoint.RECONCILE})
    )
    wide = settings(base, tmp_path, extensions=["disk"], request_parameters=["disk"])
    async with composed(wide, [disk]) as (stub, _):
        await stub.CreateSandbox(create(asking(**{"disk": "on", "disk.size": "7"})))
        await until(lambda: ("disk", "after_ready") in LOG)
        found = await capabilities(tmp_path)
        assert found["driver_name"] == "process+vmdriver"
        assert found["base_driver_name"] == "process"
        assert found["phases"] == [phase.value for phase in CallPoint]
        (entry,) = found["extensions"]
        assert (entry["name"], entry["label_key"]) == ("disk", "disk")
        assert entry["required_phases"] == ["reconcile"]
        assert entry["parameters_schema"] == Size.model_json_schema()
        assert entry["sandboxes"] == ["s1"]
        schema = found["driver_config_schema"]["properties"]["extensions"]
        assert schema["properties"] == {"disk": Size.model_json_schema()}
        points = {point["field"]: point for point in found["mutation_points"]}
        assert points["template.labels"]["phases"] == ["prepare_plan", "before_create"]
        assert points["template.labels"]["keyed"]
        (held,) = found["held"]
        assert (held["kind"], held["until"], held["orphan"]) == (
            "thing",
            "delete",
            False,
        )
        broken[0] = True
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await until(lambda: ("disk", "after_delete") in LOG)
        program = [str(Path(sys.executable).parent / "vmdriver"), "extensions"]
        where = ["--admin-socket", str(tmp_path / "s" / "run" / "admin.sock")]

        def run(*arguments: str) -> str:
            command = [*program, *arguments, *where]
            return subprocess.run(
                command, check=True, capture_output=True, text=True
            ).stdout

        (orphan,) = json.loads(await asyncio.to_thread(run, "orphans", "--json"))
        assert orphan["orphan"]
        assert "RuntimeError" in orphan["problem"]
        assert "disk" in await asyncio.to_thread(run, "ls")
        shown = json.loads(await asyncio.to_thread(run, "describe", "disk"))
        assert shown["name"] == "disk"
        broken[0] = False


async def test_both_sockets_tell_what_they_serve(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """As grpcurl asks: without a copy of the proto files."""
    async with composed(settings(base, tmp_path)):
        for socket, service, method in (
            (
                tmp_path / "c" / "c.sock",
                "openshell.compute.v1.ComputeDriver",
                "StopSandbox",
            ),
            (
                tmp_path / "s" / "run" / "admin.sock",
                "vmdriver.admin.v1.Admin",
                "GetExtensionCapabilities",
            ),
        ):
            async with grpc.aio.insecure_channel(f"unix:{socket}") as channel:
                stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

                async def ask(**question: str) -> Any:
                    request = reflection_pb2.ServerReflectionRequest(**question)
                    call = stub.ServerReflectionInfo(iter([request]))  # noqa: B023
                    return await call.read()

                listed = await ask(list_services="")
                names = {s.name for s in listed.list_services_response.service}
                assert service in names
                found = await ask(file_containing_symbol=service)
                files = found.file_descriptor_response.file_descriptor_proto
                assert any(method.encode() in raw for raw in files)


def test_whose_a_setting_is_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "compose.toml"
    path.write_text(
        'base = "unix:/b"\nbind_socket = "/c"\nextensions = ["audit-log"]\n'
        '[extension.audit-log]\npath = "/log"\napi_token = "secret-9"\n'
    )
    program = str(Path(sys.executable).parent / "vmdriver")
    command = [program, "config", "--compose", "--config", str(path)]
    shown = subprocess.run(
        [*command, "--json"], check=True, capture_output=True, text=True
    )
    rows = {
        (r["owner"], r["key"]): (r["value"], r["source"])
        for r in json.loads(shown.stdout)
    }
    assert rows["wrapper", "base"] == ("unix:/b", "file")
    assert rows["wrapper", "suffix"] == ("vmdriver", "default")
    assert rows["wrapper", "driver_name"] == ("", "default")
    assert rows["extension audit-log", "path"] == ("/log", "file")
    plain = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "extension audit-log" in plain
    assert "secret-9" not in plain + shown.stdout
