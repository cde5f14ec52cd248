"""The composed driver in front of one that places sandboxes on a cluster: pods' conditions, workspaces, a driver_config of its own,
stops that are only accepted, words that only it knows. The shapes are upstream's Kubernetes driver's and KubeVirt's.
"""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2

from tests.fakes.composed import Watching, composed, holding, settings_for, until
from tests.fakes.process_driver import ProcessDriver
from tests.fakes.service import sandbox
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.compose.config import load
from vmdriver.errors import ConfigError
from vmdriver.extension import Context, Draft, Extension
from vmdriver.extensions.loader import load_extensions

KUBEVIRT = {
    "base_by_id": True,
    "base_reasons": {
        "Provisioning": "starting",
        "Transitioning": "starting",
        "Stopping": "stopping",
        "Terminating": "stopping",
        "Stopped": "stopped",
    },
}
"""For the community's KubeVirt driver."""
BOTH = {"sandbox_id": "s1", "sandbox_name": "name-s1"}
"""As gateways ask."""


class Naming(Watching):
    """Changes one thing that has nothing to do with the base's own settings."""

    async def prepare_plan(self, context: Context, draft: Draft) -> None:
        draft.set_environment("SEAT", "seat-1")


def create(message: pb.DriverSandbox) -> pb.CreateSandboxRequest:
    return pb.CreateSandboxRequest(sandbox=message)


def pod(sandbox_id: str, workspace: str = "team-a") -> pb.DriverSandbox:
    """As upstream's Kubernetes driver tells of one."""
    kinds = {
        "PodScheduled": ("True", ""),
        "PodReadyToStartContainers": ("True", ""),
        "ContainersReady": ("False", "ContainersNotReady"),
        "example.org/QuotaAdmitted": ("Unknown", "AdmittedByNobody"),
        "Ready": ("False", "DependenciesNotReady"),
    }
    conditions = [
        pb.DriverCondition(
            type=kind,
            status=status,
            reason=reason,
            message=f"of {kind}: \N{LATIN SMALL LETTER E WITH ACUTE}",
            last_transition_time="2026-11-27T00:00:00Z",
        )
        for kind, (status, reason) in kinds.items()
    ]
    status = pb.DriverSandboxStatus(
        sandbox_name=f"name-{sandbox_id}",
        instance_id="pod/7f",
        agent_fd="3",
        sandbox_fd="4",
        conditions=conditions,
    )
    found = pb.DriverSandbox(
        id=sandbox_id,
        name=f"name-{sandbox_id}",
        namespace="openshell-team-a",
        workspace=workspace,
        status=status,
    )
    found.MergeFromString(b"\xfa\x3f\x03new")  # field 1023, of a contract to come
    return found


async def seen_by(stub: Any, found: list[Any]) -> None:
    async for event in stub.WatchSandboxes(pb.WatchSandboxesRequest()):
        found.append(event)


@pytest.fixture(params=[{}, KUBEVIRT], ids=["contract's words", "own words"])
def words(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What is translated must not change what is not."""
    return dict(request.param)


@pytest.mark.parametrize("extended", [False, True], ids=["alone", "with an extension"])
async def test_what_a_cluster_says_of_a_pod_passes_untouched(
    extended: bool, words: dict[str, Any], base: ProcessDriver, tmp_path: Path
) -> None:
    extensions = [Watching(tmp_path / "world")] if extended else []
    async with composed(settings_for(base, tmp_path, **words), extensions) as (stub, _):
        await stub.CreateSandbox(create(sandbox()))
        told = base.sandboxes["s1"] = pod("s1")
        events: list[Any] = []
        watching = asyncio.create_task(seen_by(stub, events))
        await until(lambda: events)
        own = pb.WatchSandboxesEvent()
        own.sandbox.sandbox.CopyFrom(told)
        platform = pb.WatchSandboxesEvent()
        platform.platform_event.sandbox_id = "s1"
        platform.platform_event.event.CopyFrom(
            pb.DriverPlatformEvent(
                timestamp_ms=7,
                source="kubernetes",
                type="Warning",
                reason="FailedScheduling",
                message="0/3 nodes are available",
                metadata={"kind": "Pod", "namespace": "openshell-team-a"},
            )
        )
        for event in (own, platform):
            base.tell(event)
            await until(lambda event=event: event in events)
            (passed,) = (e for e in events if e == event)
            assert passed.SerializeToString(
                deterministic=True
            ) == event.SerializeToString(deterministic=True)
        got = await stub.GetSandbox(pb.GetSandboxRequest(**BOTH))
        listed = await stub.ListSandboxes(pb.ListSandboxesRequest())
        for found in (got.sandbox, *listed.sandboxes):
            assert found.SerializeToString(
                deterministic=True
            ) == told.SerializeToString(deterministic=True)
        watching.cancel()
        await asyncio.wait({watching})


def own_config() -> struct_pb2.Struct:
    """What a base may be told: each kind of value, deep, and a number that is none."""
    found = struct_pb2.Struct()
    found.update(
        {
            "pod": {
                "runtime_class_name": "kata-qemu",
                "node_selector": {"pool": "gpu", "": "empty"},
                "tolerations": [{"key": "x", "operator": "Exists"}, None, []],
            },
            "volumes": [{"name": "data", "read_only": False, "size": 1.5}],
            "extensions": {"not": "ours"},
            "base": {"not": "ours"},
        }
    )
    found.fields["odd"].number_value = float("nan")
    return found


@pytest.mark.parametrize("changes", [False, True], ids=["nothing", "something"])
async def test_the_bases_own_driver_config_reaches_it_whatever_extensions_change(
    changes: bool, words: dict[str, Any], base: ProcessDriver, tmp_path: Path
) -> None:
    kind = Naming if changes else Watching
    envelope = struct_pb2.Struct()
    envelope.fields["base"].struct_value.CopyFrom(own_config())
    template = pb.DriverSandboxTemplate(image="i", driver_config=envelope)
    template.platform_config.update({"runtime_class_name": "kata", "host_users": None})
    asked = sandbox(template=template)
    made = [kind(tmp_path / "world")]
    async with composed(settings_for(base, tmp_path, **words), made) as (stub, _):
        await stub.ValidateSandboxCreate(pb.ValidateSandboxCreateRequest(sandbox=asked))
        await stub.CreateSandbox(create(asked))
        for method in ("ValidateSandboxCreate", "CreateSandbox"):
            got = base.asked(method).sandbox
            # As text: a number that is none is not equal to itself.
            assert str(got.spec.template.driver_config) == str(own_config())
            assert got.spec.template.platform_config == template.platform_config
            assert got.workspace == asked.workspace
            environment = dict(got.spec.template.environment) | dict(got.spec.environment)  # fmt: skip
            assert environment == ({"SEAT": "seat-1"} if changes else {})


async def test_workspaces_are_the_bases(base: ProcessDriver, tmp_path: Path) -> None:
    base.workspaces = set()
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [world]) as (stub, composition):
        for workspace in ("team-a", "team-b"):
            ask = pb.EnsureWorkspaceRequest(workspace=workspace)
            await stub.EnsureWorkspace(ask)
            message = sandbox(f"in-{workspace}", "builder")
            message.workspace = workspace
            await stub.CreateSandbox(create(message))
        assert base.workspaces == {"team-a", "team-b"}
        known = {(s.record.workspace, s.record.name) for s in composition.registry.all()}  # fmt: skip
        assert known == {("team-a", "builder"), ("team-b", "builder")}
        # One name in two workspaces: whoever names the id gets that one, and only that one ends.
        await stub.DeleteSandbox(
            pb.DeleteSandboxRequest(sandbox_id="in-team-a", sandbox_name="builder")
        )
        await until(lambda: len(composition.registry.all()) == 1)
        assert set(base.sandboxes) == {"in-team-b"}
        assert world.told.count("delete") == 1

        denied = grpc.StatusCode.PERMISSION_DENIED
        base.fail("EnsureWorkspace", denied, "not in the allowlist")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.EnsureWorkspace(pb.EnsureWorkspaceRequest(workspace="team-c"))
        assert caught.value.code() is denied
        assert caught.value.details() == "not in the allowlist"
        await stub.DeleteWorkspace(pb.DeleteWorkspaceRequest(workspace="team-a"))
        assert base.workspaces == {"team-b"}


def exactly_one(method: str, request: Any, context: Any) -> None:
    """KubeVirt's driver: the id or the name, never both."""
    if method in {"GetSandbox", "StopSandbox", "DeleteSandbox", "StartSandbox"} and (
        bool(request.sandbox_id) == bool(request.sandbox_name)
    ):
        text = "exactly one of sandbox_id or sandbox_name is required"
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)


async def test_a_base_that_takes_one_of_id_and_name_gets_one(
    base: ProcessDriver, tmp_path: Path
) -> None:
    base.spoil = exactly_one
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [world]) as (stub, _):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetSandbox(pb.GetSandboxRequest(**BOTH))
        assert caught.value.details() == "exactly one of sandbox_id or sandbox_name is required"  # fmt: skip
    async with composed(settings_for(base, tmp_path, **KUBEVIRT), [world]) as (
        stub,
        made,
    ):
        await stub.CreateSandbox(create(sandbox()))
        got = await stub.GetSandbox(pb.GetSandboxRequest(**BOTH))
        assert got.sandbox.id == "s1"
        by_name = await stub.GetSandbox(pb.GetSandboxRequest(sandbox_name="name-s1"))
        assert by_name.sandbox.id == "s1"
        await stub.StopSandbox(pb.StopSandboxRequest(**BOTH))
        await stub.StartSandbox(pb.StartSandboxRequest(**BOTH))
        answer = await stub.DeleteSandbox(pb.DeleteSandboxRequest(**BOTH))
        assert answer.deleted
        await until(lambda: not made.registry.all())
    assert holding(tmp_path / "world") == set()


async def test_a_create_whose_answer_was_lost_is_deleted_in_such_a_base_too(
    base: ProcessDriver, tmp_path: Path
) -> None:
    lost: list[str] = []

    def spoil(method: str, request: Any, context: Any) -> None:
        exactly_one(method, request, context)
        if method == "GetSandbox" and not lost:
            lost.append("now")
            base.sandboxes["s1"] = pb.DriverSandbox(id="s1", name="name-s1")
        if method == "CreateSandbox":
            context.abort(grpc.StatusCode.UNAVAILABLE, "the API server is away")

    base.spoil = spoil
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path, **KUBEVIRT), [world]) as (
        stub,
        made,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="the API server is away"):
            await stub.CreateSandbox(create(sandbox()))
        await until(lambda: not made.registry.all())
    assert base.sandboxes == {}
    assert holding(tmp_path / "world") == set()


def ready_of(seen: pb.DriverSandbox) -> tuple[str, str, str]:
    (found,) = (c for c in seen.status.conditions if c.type == "Ready")
    return found.status, found.reason, found.message


def suspended_of(seen: pb.DriverSandbox) -> list[tuple[str, str]]:
    return [(c.status, c.reason) for c in seen.status.conditions if c.type == "Suspended"]  # fmt: skip


async def test_a_life_in_words_that_only_the_base_knows(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """What a run holds is given back when it is over, not when its end was asked for; and no word on the way is an error."""
    base.spoil, base.lingers = exactly_one, True
    world, path = Watching(tmp_path / "world"), tmp_path / "world"
    async with composed(settings_for(base, tmp_path, **KUBEVIRT), [world]) as (
        stub,
        made,
    ):
        events: list[Any] = []
        watching = asyncio.create_task(seen_by(stub, events))

        async def told(status: str, reason: str) -> pb.DriverSandbox:
            def last() -> bool:
                seen = [e.sandbox.sandbox for e in events if e.HasField("sandbox")]
                return bool(seen) and ready_of(seen[-1])[:2] == (status, reason)

            await until(last)
            got = await stub.GetSandbox(pb.GetSandboxRequest(**BOTH))
            listed = await stub.ListSandboxes(pb.ListSandboxesRequest())
            assert got.sandbox == listed.sandboxes[0]
            assert got.sandbox == events[-1].sandbox.sandbox
            return got.sandbox  # type: ignore[no-any-return]

        await stub.CreateSandbox(create(sandbox()))
        await until(lambda: world.told == ["ready"])
        for reason in ("Provisioning", "Transitioning"):
            base.condition("s1", "Ready", "False", reason)
            seen = await told("False", "Starting")
            assert ready_of(seen)[2] == reason
            base.condition("s1", "Ready", "True", "Running")
            await told("True", "Running")
        assert world.told == ["ready"]

        await stub.StopSandbox(pb.StopSandboxRequest(**BOTH))
        seen = await told("False", "DependenciesNotReady")
        assert suspended_of(seen) == [("False", "PodTerminating")]
        assert (world.told, holding(path)) == (["ready"], {"first", "second", "run"})
        base.end_of("s1")
        await until(lambda: world.told == ["ready", "stop"])
        assert suspended_of(events[-1].sandbox.sandbox) == [("True", "Stopped")]
        await until(lambda: holding(path) == {"first", "second"})

        await stub.StartSandbox(pb.StartSandboxRequest(**BOTH))
        await until(lambda: world.told == ["ready", "stop", "ready"])
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(**BOTH))
        seen = await told("False", "DependenciesNotReady")
        assert world.told == ["ready", "stop", "ready"]
        base.gone("s1")
        await until(lambda: not made.registry.all())
        assert world.told == ["ready", "stop", "ready", "stop", "delete"]
        watching.cancel()
        await asyncio.wait({watching})
    assert holding(path) == set()


async def test_a_stop_that_ends_while_the_base_is_away_is_learned_from_its_list(
    base: ProcessDriver, tmp_path: Path
) -> None:
    base.lingers = True
    world, path = Watching(tmp_path / "world"), tmp_path / "world"
    async with composed(settings_for(base, tmp_path, **KUBEVIRT), [world]) as (
        stub,
        made,
    ):
        await stub.CreateSandbox(create(sandbox()))
        await until(lambda: world.told == ["ready"])
        await stub.StopSandbox(pb.StopSandboxRequest(**BOTH))
        assert holding(path) == {"first", "second", "run"}
        await asyncio.to_thread(base.stop)
        base.end_of("s1")
        base.start()
        await until(lambda: world.told == ["ready", "stop"])
        await until(lambda: holding(path) == {"first", "second"})
        await until(lambda: not made.registry.get("s1").record.up)


async def test_a_stop_and_a_delete_that_go_on_while_the_composed_driver_is_restarted_end_there(
    base: ProcessDriver, tmp_path: Path
) -> None:
    base.lingers = True
    path = tmp_path / "world"
    chosen = settings_for(base, tmp_path, **KUBEVIRT)
    first, second, third = (Watching(path) for _ in range(3))
    async with composed(chosen, [first]) as (stub, _):
        await stub.CreateSandbox(create(sandbox()))
        await until(lambda: first.told == ["ready"])
        await stub.StopSandbox(pb.StopSandboxRequest(**BOTH))
    assert holding(path) == {"first", "second", "run"}
    async with composed(chosen, [second]) as (stub, made):
        await until(made.follower.relay.connected.is_set)
        assert (second.told, holding(path)) == ([], {"first", "second", "run"})
        base.end_of("s1")
        await until(lambda: second.told == ["stop"])
        await until(lambda: holding(path) == {"first", "second"})
        await stub.StartSandbox(pb.StartSandboxRequest(**BOTH))
        await until(lambda: second.told == ["stop", "ready"])
        await stub.DeleteSandbox(pb.DeleteSandboxRequest(**BOTH))
    base.forget("s1")
    async with composed(chosen, [third]) as (_, made):
        await until(lambda: not made.registry.all())
    assert third.told == ["stop", "delete"]
    assert holding(path) == set()


async def test_a_stop_whose_caller_goes_away_is_booked_all_the_same(
    base: ProcessDriver, tmp_path: Path
) -> None:
    """The base has answered it, and is asked how far it is; it tells nobody that watches."""
    looked, go_on = threading.Event(), threading.Event()
    stopping: list[str] = []

    def spoil(method: str, _request: Any, _context: Any) -> None:
        if method == "StopSandbox":
            stopping.append(method)
        if method == "GetSandbox" and stopping:
            looked.set()
            go_on.wait(5)

    base.spoil = spoil
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path), [world]) as (stub, made):
        await stub.CreateSandbox(create(sandbox()))
        await until(lambda: world.told == ["ready"])
        base.tell = lambda _event: None
        call = stub.StopSandbox(pb.StopSandboxRequest(**BOTH))
        await asyncio.to_thread(looked.wait, 5)
        call.cancel()
        go_on.set()
        await until(lambda: world.told == ["ready", "stop"])
        await until(lambda: not made.registry.get("s1").record.up)
        await until(lambda: not made.registry.get("s1").lock.locked())
    assert holding(tmp_path / "world") == {"first", "second"}


async def test_a_reason_that_is_not_listed_stays_the_error_that_it_is(
    base: ProcessDriver, tmp_path: Path
) -> None:
    world = Watching(tmp_path / "world")
    async with composed(settings_for(base, tmp_path, **KUBEVIRT), [world]) as (stub, _):
        await stub.CreateSandbox(create(sandbox()))
        await until(lambda: world.told == ["ready"])
        base.condition("s1", "Ready", "False", "Failed")
        await until(lambda: world.told == ["ready", "stop"])
        got = await stub.GetSandbox(pb.GetSandboxRequest(**BOTH))
        assert got.sandbox == base.sandboxes["s1"]


def test_the_settings_that_the_document_has_are_these(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "compose.toml"
    for block in blocks:
        path.write_text(block)
        read = load(path, {})
        assert len(load_extensions(read.extensions, Extension)) == len(read.extensions)  # fmt: skip
    assert (read.base_by_id, dict(read.base_reasons)) == tuple(KUBEVIRT.values())


def test_a_meaning_that_there_is_not_is_named(tmp_path: Path) -> None:
    path = tmp_path / "compose.toml"
    path.write_text(
        'base = "unix:/b"\nbind_socket = "/c"\n[base_reasons]\nPending = "soon"\n'
    )
    with pytest.raises(ConfigError, match=r"base_reasons\.Pending.*starting"):
        load(path, {})
