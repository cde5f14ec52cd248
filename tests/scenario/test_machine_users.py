"""Every machine's own user, through whole lives: never two machines' at a time, and nobody's while anything of its
former owner is left.
"""

from __future__ import annotations

import asyncio
import dataclasses

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import (
    TEMPLATES,
    eventually,
    operations,
    running,
    waiting,
    with_template,
)
from vmdriver.lifecycle.engine.resource import MACHINE_USER
from vmdriver.lifecycle.ports.memory import Captured
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.machine_uids import MachineUids
from vmdriver.model.phase import DomainState, Phase
from vmdriver.model.spec import Resources

FROM_A = {"from_snapshot": "name-s1/a"}


def uid(driver: FakeDriver, sandbox_id: str = "s1") -> int:
    """Its machine's; ledger and plan say the same."""
    user = driver.plan(sandbox_id).user
    assert user is not None
    held = driver.worker(sandbox_id).sandbox.ledger.get(MACHINE_USER)
    assert held is not None
    assert held.data["uid"] == str(user.uid)
    return user.uid


async def test_it_is_the_same_in_every_run_and_goes_with_the_sandbox() -> None:
    driver = await running()
    world, first = driver.world, uid(driver)
    found, worker = operations(driver)
    for cold in (False, True):
        await driver.manager.stop("s1", "")
        await found.resume(worker, cold=cold)
        await driver.settled()
        assert driver.phase() is Phase.RUNNING
        assert uid(driver) == first
    await driver.close()
    again = FakeDriver(world)
    await again.manager.recover()
    await again.settled()
    assert uid(again) == first
    await again.manager.create(spec("s2"), None)
    await again.settled()
    assert uid(again, "s2") != first
    for name in ("s1", "s2"):
        await again.manager.delete(name, "")
    assert world.claimed_users == set()
    assert world.file_users == {}
    await again.close()


async def test_a_waiting_machines_passes_to_its_sandbox() -> None:
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    (one,) = driver.inside.waiting()
    assert one.plan.user is not None
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.plan("second").domain == one.plan.domain, "it was taken over"
    assert uid(driver, "second") == one.plan.user.uid
    assert driver.core.users.holder(one.plan.user.uid) == "second"
    await waiting(driver, 1)
    (next_one,) = driver.inside.waiting()
    assert next_one.plan.user is not None
    held = {uid(driver, "first"), uid(driver, "second"), next_one.plan.user.uid}
    assert len(held) == 3
    await eventually(
        lambda: driver.world.claimed_users == held, "what it had before stays"
    )
    await driver.close()


async def test_it_is_nobodys_while_a_fork_stands_on_its_layers() -> None:
    driver = await running()
    world, first = driver.world, uid(driver)
    found, worker = operations(driver)
    await found.create_snapshot(worker, "a", disk_only=True)
    await driver.manager.create(spec("s2", driver_config=FROM_A), None)
    await driver.settled()
    second = uid(driver, "s2")
    await driver.manager.delete("s1", "")
    assert first in world.file_users.values(), "its layer is needed still"
    await driver.close()
    few = FakeDriver(world, uids=MachineUids(250000, 250004))
    await few.manager.recover()
    await few.manager.create(spec("s3"), None)
    await few.settled()
    assert uid(few, "s3") not in {first, second}
    await few.manager.delete("s3", "")
    await few.manager.delete("s2", "")
    assert world.file_users == {}
    for name in ("s4", "s5"):
        await few.manager.create(spec(name), None)
    await few.settled()
    assert {uid(few, "s4"), uid(few, "s5")} & {first, second}, "they are free again"
    await few.close()


async def test_what_cannot_be_ended_keeps_its_number() -> None:
    """A machine that waited when its driver was killed, and that the next one cannot end."""
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    world, (one,) = driver.world, driver.inside.waiting()
    assert one.plan.user is not None
    domain, number = one.plan.domain, one.plan.user.uid
    await driver.kill()
    world.fail = lambda call: call == f"destroy {domain}"
    settings = dataclasses.replace(TEMPLATES, warm_pool=0)
    again = FakeDriver(world, settings=settings)
    await again.manager.recover()
    assert domain in world.domains, "it is there still"
    for name in ("second", "third"):
        await again.manager.create(spec(name), None)
    await again.settled()
    assert number not in {uid(again, "second"), uid(again, "third")}
    assert number in world.running_users()
    await again.close()


async def test_a_start_waits_for_a_process_that_should_have_ended() -> None:
    driver = await running()
    world, number = driver.world, uid(driver)
    await driver.manager.stop("s1", "")
    await driver.settled()
    world.machine_users["stray"] = number
    world.domains["stray"] = DomainState.RUNNING
    await driver.manager.start("s1", "")
    await driver.troubled()
    assert f"still runs as user {number}" in driver.trouble()
    assert driver.plan().domain not in world.domains
    del world.domains["stray"], world.machine_users["stray"]
    await driver.settled(30)
    assert driver.phase() is Phase.RUNNING
    assert uid(driver) == number
    await driver.close()


async def test_a_boot_is_refused_while_such_a_process_runs_and_says_why() -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    world, number = driver.world, uid(driver)
    await driver.manager.stop("s1", "")
    world.machine_users["stray"] = number
    world.domains["stray"] = DomainState.RUNNING
    await driver.manager.start("s1", "")
    await driver.settled()
    assert f"still runs as user {number}" in driver.failure().message
    del world.domains["stray"], world.machine_users["stray"]
    await driver.manager.stop("s1", "")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert uid(driver) == number
    await driver.close()


async def test_when_all_are_in_use_a_create_says_so() -> None:
    driver = FakeDriver(World(), uids=MachineUids(250000, 250003))
    await driver.manager.recover()
    for name in ("s1", "s2", "s3"):
        await driver.manager.create(spec(name), None)
        await driver.settled()
    assert "all 2 user ids for machines" in driver.failure("s3").message
    await driver.manager.delete("s1", "")
    await driver.manager.stop("s3", "")
    await driver.manager.start("s3", "")
    await driver.settled()
    assert driver.phase("s3") is Phase.RUNNING
    await driver.close()


async def test_a_number_that_was_kept_for_a_fork_can_be_had_when_that_has_gone() -> (
    None
):
    """Also in the process that found it so when it began."""
    driver = await running()
    found, worker = operations(driver)
    await found.create_snapshot(worker, "a", disk_only=True)
    await driver.manager.create(spec("s2", driver_config=FROM_A), None)
    await driver.settled()
    await driver.manager.delete("s1", "")
    await driver.close()
    few = FakeDriver(driver.world, uids=MachineUids(250000, 250003))
    await few.manager.recover()
    await few.manager.delete("s2", "")
    for name in ("s3", "s4"):
        await few.manager.create(spec(name), None)
    await few.settled()
    assert {few.phase(name) for name in ("s3", "s4")} == {Phase.RUNNING}
    assert {uid(few, "s3"), uid(few, "s4")} == {250002, 250003}
    await few.close()


async def test_a_template_of_another_range_is_built_anew() -> None:
    """Machines of this one could not read its files."""
    driver = await with_template()
    (before,) = driver.manager.templates.listed()
    await driver.close()
    moved = FakeDriver(
        driver.world, settings=TEMPLATES, uids=MachineUids(300000, 300999)
    )
    await moved.manager.recover()
    assert moved.manager.templates.listed() == []
    await moved.manager.create(spec("second"), None)
    await moved.settled()
    await eventually(moved.manager.templates.listed, "none was built")
    (after,) = moved.manager.templates.listed()
    user = after.manifest.plan.user
    assert user is not None
    assert user.gid == 300000
    assert before.layer not in driver.world.files or before.layer in set(
        moved.record("first").layers
    )
    await moved.manager.create(spec("third"), None)
    await moved.settled()
    assert moved.plan("third").template == after.key
    await moved.close()


FEW = MachineUids(250000, 250004)
"""Numbers for three machines."""


LARGER = {"resources": Resources(cpu_millis=3000)}
"""No machine that waits is of that shape."""


async def few(settings: Settings) -> FakeDriver:
    driver = FakeDriver(World(), settings=settings, uids=FEW)
    await driver.manager.recover()
    return driver


async def both_get_one(driver: FakeDriver) -> None:
    """Of two sandboxes more, and a third one does not."""
    for name in ("second", "third"):
        await driver.manager.create(spec(name, **LARGER), None)
        await eventually(
            lambda name=name: driver.phase(name) is Phase.RUNNING, "it does not run"
        )
    assert len(driver.world.claimed_users) == 3
    await driver.manager.create(spec("fourth"), None)
    await eventually(lambda: driver.record("fourth").failure, "it runs")
    failure = driver.record("fourth").failure
    assert failure is not None
    assert "MachineUidsExhausted" in failure.message


async def test_machines_that_wait_give_way_to_sandboxes_and_leave_the_last_number() -> (
    None
):
    driver = await few(dataclasses.replace(TEMPLATES, warm_pool=2))
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    await eventually(driver.manager.templates.listed, "no template was built")
    await waiting(driver, 1)
    (one,) = driver.inside.waiting()
    assert one.plan.user is not None
    held = {uid(driver, "first"), one.plan.user.uid}
    assert driver.world.claimed_users == held
    await both_get_one(driver)
    assert one.plan.domain not in driver.world.domains
    assert not driver.inside.waiting()
    await driver.close()


async def test_a_template_that_is_being_built_gives_way_to_sandboxes() -> None:
    driver = await few(TEMPLATES)
    capture, begun = driver.memory.capture, asyncio.Event()

    async def hangs(*_: object) -> Captured:
        begun.set()
        return await asyncio.Future[Captured]()

    driver.memory.capture = hangs  # type: ignore[assignment,method-assign]
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    await asyncio.wait_for(begun.wait(), 5)
    assert len(driver.world.claimed_users) == 2
    await both_get_one(driver)
    assert not driver.manager.templates.listed()
    driver.memory.capture = capture  # type: ignore[method-assign]
    await driver.close()
