"""A record or a ledger that cannot be read sets its sandbox aside: nothing of it is touched, it is
shown with the reason, everything else goes on, and a delete of it leaves nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.crashes import Bomb, played_until_crash
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import held_objects
from tests.fakes.service import served
from tests.fakes.world import World
from vmdriver._proto import compute_driver_pb2 as pb
from vmdriver.cli import ls
from vmdriver.config import load
from vmdriver.errors import AlreadyExists, Refused
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.record import SCHEMA_MINOR
from vmdriver.model.set_aside import STATE_UNREADABLE


def with_values(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **values})


RECORDS: dict[str, Callable[[str], str]] = {
    "a key that nobody knows": with_values(surprise=1),
    "NULs": lambda text: "\0" * len(text),
    "a short line": lambda text: text[: len(text) // 2],
    "nothing": lambda _: "",
    "another kind of JSON": lambda _: "[1, 2]",
    "a wrong type": with_values(intent=7),
    "a newer major schema": with_values(schema_version=2, schema_minor=0),
}
LEDGERS: dict[str, Callable[[list[str]], list[str]]] = {
    "a line of NULs": lambda lines: [*lines, "\0" * 40],
    "a short line": lambda lines: [*lines[:-1], lines[-1][:9]],
    "a line that is missing": lambda lines: [x for x in lines if '"intent"' not in x],
    "no lease in it": lambda lines: [
        x.replace('"host_ip"', '"house_ip"') for x in lines
    ],
    "an entry that says too little": lambda lines: [
        x.replace('"domain"', '"doman"') for x in lines
    ],
}


@asynccontextmanager
async def two_sandboxes(world: World) -> AsyncIterator[FakeDriver]:
    """s1 and s2 run; s1 has a snapshot, so that its disk is a chain."""
    driver = FakeDriver(world)
    await driver.manager.recover()
    for sandbox_id in ("s1", "s2"):
        await driver.manager.create(spec(sandbox_id), None)
    await driver.settled()
    operations = Operations(driver.manager)
    await operations.create_snapshot(operations.find("s1"), "a", disk_only=True)
    yield driver
    await driver.close()


def of(world: World, sandbox_id: str) -> set[str]:
    """Its machine, tap, table and files."""
    plan = json.loads(world.records[sandbox_id])["plan"]
    tap = plan["network"]["lease"]["tap"]
    own = {f"machine {plan['domain']}", f"tap {tap}", f"firewall {tap}"}
    return own | {f"file {f}" for f in world.files if sandbox_id in f}


def conditions(snapshots: Any) -> dict[str, tuple[str, str]]:
    return {s.id: (s.conditions[0].reason, s.conditions[0].message) for s in snapshots}


async def damaged_and_started_again(
    world: World, damage: Callable[[World], None]
) -> tuple[set[str], FakeDriver]:
    async with two_sandboxes(world):
        objects = of(world, "s1")
    damage(world)
    driver = FakeDriver(world)
    await driver.manager.recover()
    return objects, driver


def damages() -> list[Any]:
    def of_record(change: Callable[[str], str]) -> Callable[[World], None]:
        def apply(world: World) -> None:
            world.records["s1"] = change(world.records["s1"])

        return apply

    def of_ledger(change: Callable[[list[str]], list[str]]) -> Callable[[World], None]:
        def apply(world: World) -> None:
            world.journals["s1"] = change(world.journals["s1"])

        return apply

    return [
        *(pytest.param(of_record(c), id=f"record: {n}") for n, c in RECORDS.items()),
        *(pytest.param(of_ledger(c), id=f"ledger: {n}") for n, c in LEDGERS.items()),
    ]


@pytest.mark.parametrize("damage", damages())
async def test_it_alone_is_set_aside_and_comes_back_when_it_is_repaired(
    damage: Callable[[World], None],
) -> None:
    world = World()
    intact: dict[str, Any] = {}

    def keep_and_damage(world: World) -> None:
        intact.update(record=world.records["s1"], ledger=list(world.journals["s1"]))
        damage(world)

    objects, driver = await damaged_and_started_again(world, keep_and_damage)
    manager = driver.manager
    await driver.settled()
    assert objects <= world.objects(), "something of it was touched"
    shown = conditions(manager.statuses())
    assert shown["s1"][0] == STATE_UNREADABLE
    assert "repair" in shown["s1"][1]
    assert "delete" in shown["s1"][1]
    assert shown["s2"][0] == "Running"
    operations = Operations(manager)
    for attempt in (
        manager.stop("s1", ""),
        manager.start("s1", ""),
        manager.stop("", manager.snapshot("s1", "").name),
    ):
        with pytest.raises(Refused) as refused:
            await attempt
        assert refused.value.reason == STATE_UNREADABLE
    with pytest.raises(
        Refused, match="cannot be read|makes no sense|damaged|lease|how to"
    ):
        operations.find("s1")
    with pytest.raises(AlreadyExists):
        await manager.create(spec("s1"), None)
    # Everything else goes on, and gets none of its addresses.
    await manager.stop("s2", "")
    await manager.create(spec("s3"), None)
    await driver.settled()
    assert driver.phase("s3") is Phase.RUNNING
    lease = json.loads(intact["record"])["plan"]["network"]["lease"]
    other = driver.plan("s3")
    assert other.network.lease.index != lease["index"]
    assert objects <= world.objects()
    await driver.close()

    world.records["s1"], world.journals["s1"] = intact["record"], intact["ledger"]
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    assert conditions(driver.manager.statuses())["s1"][0] == "Running"
    assert world.objects() == held_objects(world)
    assert sum(world.starts.values()) == 3, "its machine went on all the time"
    await driver.close()


@pytest.mark.parametrize("damage", damages())
async def test_a_delete_of_it_leaves_nothing(damage: Callable[[World], None]) -> None:
    world = World()
    _, driver = await damaged_and_started_again(world, damage)
    manager = driver.manager
    watching = driver.broadcaster.subscribe()
    answers = await asyncio.gather(manager.delete("s1", ""), manager.delete("s1", ""))
    assert any(answers)
    assert "s1" not in world.records
    assert "s1" not in conditions(manager.statuses())
    assert not await manager.delete("s1", "")
    told = []
    while True:
        notice = await watching.next()
        assert notice is not None
        told.append(type(notice).__name__)
        if told[-1] == "Deleted":
            break
    assert world.objects() == held_objects(world), "the other's only"
    await manager.create(spec("s1"), None)
    await driver.settled()
    assert driver.phase("s1") is Phase.RUNNING
    await driver.close()


@pytest.mark.parametrize("both", [False, True], ids=["the record", "both files"])
async def test_a_delete_that_was_begun_is_finished_by_the_next_driver(
    both: bool,
) -> None:
    world = World()

    def damage(world: World) -> None:
        world.records["s1"] = ""
        if both:
            world.journals["s1"] = ["\0"]

    objects, driver = await damaged_and_started_again(world, damage)
    machine = next(o for o in objects if o.startswith("machine"))
    world.fail = lambda call: call.startswith("destroy")
    deleting = asyncio.create_task(driver.manager.delete("s1", ""))
    while not driver.knows():
        await asyncio.sleep(0)
    assert machine in world.objects()
    await driver.kill()
    deleting.cancel()
    await asyncio.gather(deleting, return_exceptions=True)
    world.fail = lambda _: False
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    assert "s1" not in world.records
    assert world.objects() == held_objects(world)
    await driver.close()


@pytest.mark.parametrize("broken", ["record", "ledger", "record and ledger"])
async def test_a_kill_at_any_point_of_its_delete_leaves_nothing_either(
    broken: str,
) -> None:
    async def once(at: int | None) -> int:
        world = World()
        async with two_sandboxes(world):
            pass
        if "record" in broken:
            world.records["s1"] = "\0"
        if "ledger" in broken:
            world.journals["s1"].append("\0")
        bomb = Bomb(world, at)
        driver = FakeDriver(world, bomb)

        async def delete() -> None:
            await driver.manager.delete("s1", "")

        if await played_until_crash(driver, bomb, delete):
            driver = FakeDriver(world)
            await driver.manager.recover()
            await driver.settled()
            await driver.manager.delete("s1", "")
            assert driver.phase("s2") is Phase.RUNNING
            await driver.close()
        assert list(world.records) == ["s2"], f"killed at {bomb.names[-1:]}"
        assert world.objects() == held_objects(world), f"killed at {bomb.names[-1:]}"
        return bomb.passed

    points = await once(None)
    assert points > 20
    for at in range(points):
        await once(at)


async def test_its_delete_takes_no_layer_that_another_stands_on() -> None:
    world = World()
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.create(spec("s1"), None)
    await driver.settled()
    operations = Operations(driver.manager)
    await operations.create_snapshot(operations.find("s1"), "a", disk_only=True)
    fork = spec("s2", driver_config={"from_snapshot": "s1/a"})
    await driver.manager.create(fork, None)
    await driver.settled()
    shared = driver.record("s2").layers[0]
    await driver.close()

    readable = world.records["s2"]
    world.records["s2"] = "\0"
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.delete("s1", "")
    assert shared in world.files, "who cannot be read stands on it"
    await driver.close()
    world.records["s2"] = readable
    driver = FakeDriver(world)
    await driver.manager.recover()
    assert shared in world.files
    assert driver.phase("s2") is Phase.RUNNING
    await driver.close()
    world.records["s2"] = "\0"
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.delete("s2", "")
    assert shared not in world.files, "nobody stands on it any more"
    assert world.objects() == set()
    await driver.close()


async def test_a_fork_that_has_no_layer_yet_may_stand_on_any() -> None:
    world = World()
    async with two_sandboxes(world) as driver:
        record = driver.record()
        layers = record.snapshots[0].layers
        fork = record.model_copy(
            update={
                "spec": spec("s9"),
                "layers": layers,
                "inherited_layers": len(layers),
                "snapshots": (),
                "plan": None,
                "phase": Phase.STOPPED,
                "intent": Intent.STOPPED,
            }
        )
    world.records["s9"] = fork.model_dump_json()
    intact = world.records["s9"]
    world.records["s9"] = "{"
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.delete("s1", "")
    assert set(layers) <= world.files
    await driver.close()
    world.records["s9"] = intact
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.manager.start("s9", "")
    await driver.settled()
    assert driver.phase("s9") is Phase.RUNNING
    await driver.close()


async def test_no_image_template_or_layer_is_collected_meanwhile() -> None:
    world = World()
    async with two_sandboxes(world):
        pass
    world.files.add("layers/nobody.1.qcow2")
    world.checkpoints["templates/old"] = ""
    world.journals["s1"] = ["\0"]
    before = set(world.checkpoints)
    driver = FakeDriver(world)
    await driver.manager.recover()
    world.images_in_use = {"untouched"}
    assert await driver.manager.images.collect() == ()
    assert world.images_in_use == {"untouched"}, "the cache was not even asked"
    assert "layers/nobody.1.qcow2" in world.files
    assert before <= set(world.checkpoints)
    await driver.manager.delete("s1", "")
    await driver.manager.images.collect()
    assert world.images_in_use != {"untouched"}
    await driver.close()


async def test_the_console_of_its_machine_stays_small() -> None:
    world = World()
    _, driver = await damaged_and_started_again(
        world, lambda world: world.journals.update(s1=["\0"])
    )
    async with asyncio.timeout(10):
        while "bound console s1/console.log" not in world.calls:
            await asyncio.sleep(0.05)
    await driver.close()


async def test_two_that_hold_one_address_do_not_both_run() -> None:
    world = World()
    async with two_sandboxes(world):
        pass
    first = json.loads(world.journals["s1"][0])["data"]
    line = json.loads(world.journals["s2"][0])
    line["data"]["index"] = first["index"]
    world.journals["s2"][0] = json.dumps(line)
    driver = FakeDriver(world)
    await driver.manager.recover()
    shown = conditions(driver.manager.statuses())
    assert shown["s1"][0] == "Running"
    assert shown["s2"][0] == STATE_UNREADABLE
    assert "s1" in shown["s2"][1]
    await driver.close()


async def test_fields_of_a_newer_minor_schema_are_kept_and_written_back() -> None:
    world = World()
    async with two_sandboxes(world):
        pass
    document = json.loads(world.records["s1"])
    document |= {"schema_minor": SCHEMA_MINOR + 1, "novelty": {"a": [1]}}
    document["spec"]["more"] = "x"
    document["snapshots"][0]["colour"] = "red"
    world.records["s1"] = json.dumps(document)
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await driver.manager.stop("s1", "")
    await driver.close()
    stored = json.loads(world.records["s1"])
    assert stored["phase"] == "stopped"
    assert stored["schema_minor"] == SCHEMA_MINOR + 1
    assert stored["novelty"] == {"a": [1]}
    assert stored["spec"]["more"] == "x"
    assert stored["snapshots"][0]["colour"] == "red"


async def test_a_record_of_the_first_release_is_read() -> None:
    world = World()
    async with two_sandboxes(world):
        pass
    document = json.loads(world.records["s1"])
    del document["schema_minor"]
    world.records["s1"] = json.dumps(document)
    driver = FakeDriver(world)
    await driver.manager.recover()
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    await driver.close()


async def test_a_gateway_is_shown_it_and_can_delete_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    async with two_sandboxes(world):
        pass
    world.records["s1"] = with_values(surprise=1)(world.records["s1"])
    async with served(tmp_path, world=world) as client:
        stub = client.stub
        answer = await stub.GetSandbox(pb.GetSandboxRequest(sandbox_id="s1"))
        (condition,) = answer.sandbox.status.conditions
        assert (condition.type, condition.status) == ("Ready", "False")
        assert condition.reason == STATE_UNREADABLE
        assert answer.sandbox.name == "name-s1"
        listed = await stub.ListSandboxes(pb.ListSandboxesRequest())
        assert [s.id for s in listed.sandboxes] == ["s1", "s2"]
        first = await anext(aiter(stub.WatchSandboxes(pb.WatchSandboxesRequest())))
        assert first.sandbox.sandbox.id == "s1"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.StopSandbox(pb.StopSandboxRequest(sandbox_id="s1"))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        flags = {"bind_socket": str(client.socket), "state_dir": str(tmp_path)}
        await asyncio.to_thread(ls.ls, load(flags=flags), as_json=False)
        printed = capsys.readouterr().out
        assert f"note: s1: {condition.message}" in printed
        assert printed.count(STATE_UNREADABLE) == 1
        request = pb.DeleteSandboxRequest(sandbox_id="s1")
        assert (await stub.DeleteSandbox(request)).deleted
        listed = await stub.ListSandboxes(pb.ListSandboxesRequest())
        assert [s.id for s in listed.sandboxes] == ["s2"]
