"""The gateway's rules (contract §0, §2), each over a real socket."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc
import pytest

from tests.fakes.limits import limit
from tests.fakes.service import sandbox, served
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import BOUND_S, eventually
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import Phase


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s")


def condition(message: pb.DriverSandbox) -> tuple[str, str, str]:
    first = message.status.conditions[0]
    return first.type, first.status, first.reason


async def get(s, sandbox_id: str = "s1") -> pb.DriverSandbox:
    return (
        await s.stub.GetSandbox(pb.GetSandboxRequest(sandbox_id=sandbox_id))
    ).sandbox


async def refused(call, code: grpc.StatusCode, text: str = "") -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code, caught.value.details()
    details = caught.value.details() or ""
    assert text in details
    return details


async def test_rule_1_answers_carry_the_gateways_id_and_name(short: Path) -> None:
    async with served(short) as s:
        await s.create("s1", name="my-name")
        for found in (
            await get(s),
            (await s.stub.ListSandboxes(pb.ListSandboxesRequest())).sandboxes[0],
        ):
            assert (found.id, found.name, found.workspace) == ("s1", "my-name", "w")
            assert not found.HasField("spec")


async def test_rule_2_stopped_is_suspended_true(short: Path) -> None:
    async with served(short) as s:
        await s.create()
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        assert condition(await get(s)) == ("Suspended", "True", "Stopped")


async def test_rule_3_on_the_way_up_the_reason_is_transient(short: Path) -> None:
    world, seen = World(), []
    async with served(short, world=world) as s:
        await s.create("earlier")
        watch = s.stub.WatchSandboxes(pb.WatchSandboxesRequest())
        reader = asyncio.create_task(collect(watch, seen))
        await eventually(lambda: seen, "the watcher is not told what there is")
        seen.clear()
        await s.create()
        await eventually(lambda: "Running" in reasons(seen), "the watcher is not told")
        reader.cancel()
        shown = [
            condition(e.sandbox.sandbox)
            for e in seen
            if e.WhichOneof("payload") == "sandbox"
        ]
        assert shown[-1] == ("Ready", "True", "Running")
        assert set(shown[:-1]) == {("Ready", "False", "Starting")}


def reasons(seen: list) -> list[str]:
    """Of each picture that a watcher was sent."""
    return [
        condition(e.sandbox.sandbox)[2]
        for e in seen
        if e.WhichOneof("payload") == "sandbox"
    ]


async def collect(watch, into: list) -> None:
    async for event in watch:
        into.append(event)


async def test_rule_4_a_delete_is_followed_by_a_deleted_event(short: Path) -> None:
    async with served(short) as s:
        await s.create()
        seen: list = []
        reader = asyncio.create_task(
            collect(s.stub.WatchSandboxes(pb.WatchSandboxesRequest()), seen)
        )
        await eventually(lambda: seen, "the watcher is not told")
        assert (
            await s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        ).deleted
        await eventually(
            lambda: seen[-1].WhichOneof("payload") == "deleted", "it is not told"
        )
        reader.cancel()
        assert seen[-1].deleted.sandbox_id == "s1"
        await refused(get(s), grpc.StatusCode.NOT_FOUND)


async def test_rule_5_start_does_not_wait_for_the_guest(short: Path) -> None:
    world = World()
    async with served(short, world=world) as s:
        await s.create()
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        held_back = asyncio.Event()
        real = s.driver.hypervisor.start

        async def slow(plan, mark):
            await held_back.wait()
            await real(plan, mark)

        s.driver.hypervisor.start = slow
        async with asyncio.timeout(BOUND_S):
            await s.stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"))
        assert '"intent":"running"' in world.records["s1"], (
            "the start is durable before it is accepted"
        )
        held_back.set()
        await s.driver.settled()
        assert s.driver.phase() is Phase.RUNNING


async def test_rule_7_failed_sandboxes_stay_listed_until_delete(short: Path) -> None:
    world = World()
    world.fail = lambda call: call.startswith("make tap")
    async with served(short, world=world) as s:
        await s.create()
        assert condition(await get(s)) == ("Ready", "False", "ProvisioningFailed")
        world.fail = lambda call: False
        assert (
            await s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        ).deleted


async def test_rule_8_unclaimed_host_objects_are_removed_at_start(short: Path) -> None:
    world = World()
    world.taps["vmdorphan"] = "vmdriver/test/gone"
    world.taps["foreign"] = "vmdriver/other/gone"
    async with served(short, world=world):
        assert world.taps == {"foreign": "vmdriver/other/gone"}


async def test_rule_9_calls_wait_for_recovery_and_never_for_ever(
    short: Path, monkeypatch
) -> None:
    limit(monkeypatch, ready_s=0.2)
    async with served(short, recover=False) as s:
        await s.stub.GetCapabilities(pb.GetCapabilitiesRequest())
        await refused(
            s.stub.ListSandboxes(pb.ListSandboxesRequest()), grpc.StatusCode.UNAVAILABLE
        )
        await refused(get(s), grpc.StatusCode.UNAVAILABLE)


async def test_rule_11_stop_says_ok_only_when_the_machine_is_down(short: Path) -> None:
    world = World()
    async with served(short, world=world) as s:
        await s.create()
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        assert world.domains == {}
        assert len(world.flushed) == 1, "file systems are flushed first"


async def test_a_stop_that_a_delete_overtakes_is_ok_only_when_the_machine_is_gone(
    short: Path,
) -> None:
    world = World()
    async with served(short, world=world) as s:
        await s.create()
        held_back = asyncio.Event()
        real = s.driver.hypervisor.destroy

        async def slow(domain: str) -> None:
            await held_back.wait()
            await real(domain)

        s.driver.hypervisor.destroy = slow
        stop = asyncio.ensure_future(
            s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        )
        await asyncio.sleep(0.05)
        delete = asyncio.ensure_future(
            s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        )
        await asyncio.sleep(0.05)
        assert not stop.done()
        held_back.set()
        await stop
        assert world.domains == {}
        await delete


async def test_rule_12_a_stop_never_signals_the_main_process(short: Path) -> None:
    world = World()
    async with served(short, world=world) as s:
        await s.create()
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        calls = [
            call.split()[0]
            for call in world.calls
            if call.split()[0] in {"flush", "destroy", "shutdown"}
        ]
        assert calls == ["flush", "destroy"]


async def test_rule_13_after_a_driver_restart_machines_are_adopted(
    short: Path, caplog
) -> None:
    caplog.set_level("INFO")
    world = World()
    async with served(short, world=world) as s:
        await s.create()
    world.tables.clear()  # somebody flushed the firewall meanwhile
    async with served(short, world=world) as s:
        await eventually(lambda: "Adopted" in caplog.text, "it is not adopted")
        await s.driver.settled()
        assert condition(await get(s)) == ("Ready", "True", "Running")
        assert list(world.starts.values()) == [1], "adopted, not started again"
        assert "Adopted" in caplog.text
        assert world.tables, "the firewall is put right"


async def test_stop_start_and_delete_are_idempotent(short: Path) -> None:
    async with served(short) as s:
        await s.create()
        for _ in range(2):
            await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        for _ in range(2):
            await s.stub.StartSandbox(pb.StartSandboxRequest(sandbox_name="name-s1"))
        await s.driver.settled()
        assert s.driver.phase() is Phase.RUNNING
        both = [
            s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
            for _ in range(2)
        ]
        assert (await both[0]).deleted
        await both[1]
        assert not (
            await s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        ).deleted


async def test_unknown_ids(short: Path) -> None:
    async with served(short) as s:
        missing = grpc.StatusCode.NOT_FOUND
        await refused(get(s, "nobody"), missing, "nobody")
        await refused(
            s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="nobody")), missing
        )
        await refused(
            s.stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="nobody")), missing
        )
        assert not (
            await s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="nobody"))
        ).deleted
        await refused(
            s.stub.GetSandbox(pb.GetSandboxRequest()),
            grpc.StatusCode.INVALID_ARGUMENT,
            "sandbox_id",
        )


async def test_a_second_create_of_an_id_is_refused_and_changes_nothing(
    short: Path,
) -> None:
    async with served(short) as s:
        await s.create()
        call = s.stub.CreateSandbox(pb.CreateSandboxRequest(sandbox=sandbox("s1")))
        await refused(call, grpc.StatusCode.ALREADY_EXISTS)
        assert s.driver.phase() is Phase.RUNNING


async def test_a_gateway_of_the_next_generation_is_refused_with_a_reason(
    short: Path,
) -> None:
    async with served(short) as s:
        request = pb.GetCapabilitiesRequest(gateway=pb.GatewayIdentity())
        text = await refused(
            s.stub.GetCapabilities(request),
            grpc.StatusCode.FAILED_PRECONDITION,
            "v0.0.69 to v0.0.116",
        )
        assert "0.1" in text


async def test_capabilities_and_workspaces(short: Path) -> None:
    async with served(short) as s:
        answer = await s.stub.GetCapabilities(pb.GetCapabilitiesRequest())
        assert answer.default_image == "example.org/default:1"
        assert not answer.gateway_manages_lifecycle
        empty = await s.stub.GetGatewayListenerRequirements(
            pb.GetGatewayListenerRequirementsRequest()
        )
        assert not empty.requirements
        for _ in range(2):
            await s.stub.EnsureWorkspace(pb.EnsureWorkspaceRequest(workspace="w"))
            await s.stub.DeleteWorkspace(pb.DeleteWorkspaceRequest(workspace="w"))


async def test_watch_has_no_gap_between_list_and_changes(short: Path) -> None:
    async with served(short) as s:
        for number in range(20):
            await s.create(f"s{number}")
        seen: list = []
        reader = asyncio.create_task(
            collect(s.stub.WatchSandboxes(pb.WatchSandboxesRequest()), seen)
        )
        deletes = [
            s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id=f"s{n}"))
            for n in range(20)
        ]
        for call in deletes:
            await call
        await asyncio.sleep(0.2)

        def unseen() -> set[str]:
            """Listed, and not seen to go."""
            kinds = [(e.WhichOneof("payload"), e) for e in seen]
            listed = {e.sandbox.sandbox.id for kind, e in kinds if kind == "sandbox"}
            gone = {e.deleted.sandbox_id for kind, e in kinds if kind == "deleted"}
            return listed - gone

        await eventually(lambda: not unseen(), "whatever was listed is seen to go")
        reader.cancel()


async def test_a_watcher_that_falls_behind_is_aborted_not_silently_short(
    short: Path,
) -> None:
    async with served(short, watch_limit=5) as s:
        watch = s.stub.WatchSandboxes(pb.WatchSandboxesRequest())
        await s.create()
        await watch.read()
        # Without reading, HTTP/2 flow control holds the server's stream back until its queue is full.
        for number in range(3000):
            s.driver.tell("s1", "Noise", "x" * 200 + str(number))
            if number % 50 == 0:
                await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while True:
                await asyncio.wait_for(watch.read(), 5)
        assert caught.value.code() is grpc.StatusCode.ABORTED


async def test_the_end_of_the_main_process_is_final_and_carries_its_code(
    short: Path,
) -> None:
    world = World()
    async with served(short, world=world) as s:
        await s.create()
        domain = next(iter(world.domains))
        world.end_machine(domain, GuestReport("exited", 7))
        s.driver.hypervisor.hint(domain)
        await s.driver.in_phase("s1", Phase.FAILED)
        assert condition(await get(s)) == ("Ready", "False", "MainProcessExited")
        assert "exit code 7" in (await get(s)).status.conditions[0].message
        start = s.stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"))
        await refused(
            start, grpc.StatusCode.FAILED_PRECONDITION, "stop the sandbox first"
        )
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        await s.stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1"))
        await s.driver.settled()
        assert s.driver.phase() is Phase.RUNNING


async def test_a_crash_is_restarted_as_often_as_configured_without_a_terminal_reason(
    short: Path,
) -> None:
    import dataclasses

    world, seen = World(), []
    settings = dataclasses.replace(SETTINGS, crash_restarts=1)
    async with served(short, world=world, settings=settings) as s:
        await s.create()
        reader = asyncio.create_task(
            collect(s.stub.WatchSandboxes(pb.WatchSandboxesRequest()), seen)
        )
        await eventually(lambda: seen, "the watcher is not told")
        domain = next(iter(world.domains))
        for expected in (Phase.RUNNING, Phase.FAILED):
            starts = world.starts[domain]
            world.end_machine(domain)
            s.driver.hypervisor.hint(domain)
            await s.driver.until(
                "s1",
                lambda r, e=expected, n=starts: (
                    r.phase is e and (world.starts[domain] > n or e is Phase.FAILED)
                ),
            )
        await eventually(lambda: "MachineCrashed" in reasons(seen), "it is not told")
        reader.cancel()
        told = reasons(seen)
        assert told[-1] == "MachineCrashed"
        assert "MachineCrashed" not in told[:-1]
        assert "last words" in (await get(s)).status.conditions[0].message


async def test_after_a_host_reboot_what_was_meant_to_run_is_started_again(
    short: Path, monkeypatch
) -> None:
    world = World()
    async with served(short, world=world) as s:
        await s.create("s1")
        await s.create("s2")
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s2"))
    from vmdriver.host import facts
    from vmdriver.model.phase import DomainState

    world.domains = dict.fromkeys(
        world.domains, DomainState.OFF
    )  # definitions survive, machines do not
    world.taps.clear()
    world.tables.clear()
    monkeypatch.setattr(facts, "boot_id", lambda: "another boot")
    async with served(short, world=world) as s:
        await s.driver.settled()
        await s.driver.until(
            "s1", lambda r: r.launches == 2 and r.phase is Phase.RUNNING
        )
        assert s.driver.phase("s2") is Phase.STOPPED


async def test_a_client_that_goes_away_changes_nothing(short: Path) -> None:
    async with served(short) as s:
        await s.create()
        begun, go_on, real = (
            asyncio.Event(),
            asyncio.Event(),
            s.driver.hypervisor.destroy,
        )

        async def slow(domain: str) -> None:
            begun.set()
            await go_on.wait()
            await real(domain)

        s.driver.hypervisor.destroy = slow
        call = s.stub.DeleteSandbox(pb.DeleteSandboxRequest(sandbox_id="s1"))
        await asyncio.wait_for(begun.wait(), 5)
        call.cancel()
        go_on.set()
        await eventually(lambda: not s.driver.sandboxes(), "the delete does not go on")


async def test_the_token_reaches_the_guests_seed_and_nothing_else(
    short: Path, caplog
) -> None:
    world = World()
    async with served(short, world=world) as s:
        await s.create(sandbox_token="very-secret-token")
        assert world.seeds["s1"][1]["auth/sandbox.jwt"] == b"very-secret-token\n"
        assert "very-secret-token" not in world.records["s1"]
        assert "very-secret-token" not in "".join(world.journals["s1"])
        assert "very-secret-token" not in str(world.seeds["s1"][0])
        assert "very-secret-token" not in caplog.text
        assert "very-secret-token" not in str(await get(s))


async def test_the_socket_is_closed_to_others(short: Path) -> None:
    async with served(short) as s:
        assert os.stat(s.socket).st_mode & 0o777 == 0o600
        assert os.stat(s.socket.parent).st_mode & 0o777 == 0o700


async def test_limits_on_number_and_memory_name_themselves(short: Path) -> None:
    import dataclasses

    settings = dataclasses.replace(
        SETTINGS, max_sandboxes=2, max_committed_memory_mib=3000
    )
    async with served(short, settings=settings) as s:
        await s.create("s1")
        second = pb.ValidateSandboxCreateRequest(sandbox=sandbox("s2"))
        over = grpc.StatusCode.RESOURCE_EXHAUSTED
        await refused(
            s.stub.ValidateSandboxCreate(second), over, "max_committed_mem_mib"
        )
        await s.stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        await s.create("s2")
        await refused(
            s.stub.StartSandbox(pb.StartSandboxRequest(sandbox_id="s1")),
            over,
            "max_committed_mem_mib",
        )
        third = pb.ValidateSandboxCreateRequest(sandbox=sandbox("s3"))
        await refused(s.stub.ValidateSandboxCreate(third), over, "max_sandboxes")
