"""How much of the host's memory machines that wait may hold, beside the sandboxes."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES, eventually
from vmdriver.model.phase import Phase
from vmdriver.model.spec import Resources

MIB = TEMPLATES.memory_mib


class Failing:
    """As many calls of each kind fail."""

    def __init__(self, **left: int) -> None:
        self.left = left

    def __call__(self, call: str) -> bool:
        kind = call.split()[0]
        self.left[kind] = self.left.get(kind, 0) - 1
        return self.left[kind] >= 0


async def with_pool(held_mib: int | None, waiting: int, **settings: Any) -> FakeDriver:
    """`first` runs, and so many machines wait for others, each of which holds so much."""
    settings = dataclasses.replace(TEMPLATES, warm_pool=9, **settings)
    driver = FakeDriver(World(held_mib=held_mib), settings=settings)
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    await full(driver, waiting)
    return driver


async def full(driver: FakeDriver, count: int) -> None:
    """So many wait, and no more come."""
    await eventually(
        lambda: len(driver.inside.waiting()) == count, f"there are not {count}"
    )
    await driver.settled()
    assert len(driver.inside.waiting()) == count


@pytest.mark.parametrize(
    ("held_mib", "count"), [(18, 5), (40, 2), (50, 2), (51, 1), (101, 1), (None, 3)]
)
async def test_machines_that_wait_count_as_what_they_hold(
    held_mib: int | None, count: int
) -> None:
    """What the first one will hold nobody knows before it is there."""
    driver = await with_pool(held_mib, count, warm_pool_memory_mib=100)
    assert driver.manager.warm_pool.held_mib() == (held_mib or 32) * count
    await driver.close()


async def test_machines_that_wait_give_way_before_a_sandbox_has_its_machine() -> None:
    """Never is more in use than the operator allows for all machines together."""
    most = 4 * MIB + 130
    driver = await with_pool(50, 9, max_committed_memory_mib=most)
    manager, seen = driver.manager, list[int]()

    def look(call: str) -> bool:
        if call.split()[0] in {"start", "load"}:
            seen.append(manager.budget.committed_mib() + manager.warm_pool.held_mib())
        return False

    driver.world.fail = look
    for name in ("second", "third", "fourth"):
        await manager.create(spec(name), None)
        await driver.settled()
    await full(driver, 2)
    assert max(seen) <= most
    assert {driver.plan(n).template for n in ("second", "third", "fourth")} != {None}
    await driver.close()


async def test_a_machine_that_will_not_give_way_does_not_stop_the_sandbox() -> None:
    driver = await with_pool(50, 9, max_committed_memory_mib=3 * MIB + 130)
    failing = driver.world.fail = Failing(destroy=2)
    for name in ("second", "third"):
        await driver.manager.create(spec(name), None)
        await driver.settled()
        assert driver.phase(name) is Phase.RUNNING
    assert failing.left["destroy"] < 0, "none had to give way"
    await eventually(lambda: not driver.leftovers.machines(), "they stay")
    await driver.close()


async def test_a_machine_whose_memory_cannot_be_looked_at_does_not_wait() -> None:
    driver = await with_pool(18, 2, warm_pool_memory_mib=40)
    world = driver.world
    failing = world.fail = Failing(memory=1)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    await eventually(lambda: failing.left["memory"] == 0, "nobody looks at it")

    def unowned() -> list[str]:
        return [name for name in world.domains if "/warm-" in world.marks[name]]

    await eventually(lambda: len(unowned()) == 1, "it stays")
    await full(driver, 1)
    assert len(unowned()) == 1
    await driver.close()


async def test_they_give_way_to_a_sandbox_that_comes_back_from_its_memory() -> None:
    most = 3 * MIB + 130
    driver = await with_pool(50, 9, max_committed_memory_mib=most)
    manager, seen = driver.manager, list[int]()
    keeping = spec("second", driver_config={"on_stop": "suspend"})
    await manager.create(keeping, None)
    await driver.settled()
    await manager.stop("second", "")
    assert driver.phase("second") is Phase.SUSPENDED
    await manager.create(spec("third"), None)
    await driver.settled()
    await full(driver, 9)

    def look(call: str) -> bool:
        if call == f"load {driver.plan('second').domain}":
            seen.append(manager.budget.committed_mib() + manager.warm_pool.held_mib())
        return False

    driver.world.fail = look
    await manager.start("second", "")
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    assert seen, "it was not loaded"
    assert max(seen) <= most
    await driver.close()


async def test_one_that_was_being_made_when_a_sandbox_came_does_not_stay() -> None:
    most = 2 * MIB + 130
    driver = await with_pool(50, 9, max_committed_memory_mib=most)
    warm_pool, hypervisor = driver.manager.warm_pool, driver.inside.ports.hypervisor
    real, made, go = hypervisor.held_mib, asyncio.Event(), asyncio.Event()

    async def slow(domain: str) -> int | None:
        made.set()
        await go.wait()
        return await real(domain)

    hypervisor.held_mib = slow  # type: ignore[method-assign]
    assert await warm_pool.make_way()
    warm_pool.refill()
    await made.wait()
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    assert driver.inside.budget.committed_mib() + warm_pool.held_mib() <= most
    go.set()
    await full(driver, 2)
    await driver.close()


async def test_they_come_again_when_sandboxes_leave_them_the_memory() -> None:
    most = 2 * MIB + 130
    driver = await with_pool(50, 9, max_committed_memory_mib=most)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    await full(driver, 2)
    await driver.manager.stop("second", "")
    await full(driver, 9)
    await driver.manager.start("second", "")
    await driver.settled()
    await full(driver, 2)
    await driver.manager.delete("second", "")
    await full(driver, 9)
    await driver.close()


async def test_one_that_is_larger_than_what_is_left_is_not_made_again_and_again() -> (
    None
):
    driver = await with_pool(50, 9, max_committed_memory_mib=2 * MIB + 40)

    def filled() -> bool:
        return "warm pool" not in {t.get_name() for t in asyncio.all_tasks()}

    await driver.manager.create(spec("second"), None)
    await driver.settled()
    before = len(driver.world.calls)
    for _ in range(3):
        await eventually(filled, "there is no end of it")
        driver.manager.warm_pool.refill()
    await eventually(filled, "there is no end of it")
    assert driver.inside.waiting() == []
    made = [call for call in driver.world.calls[before:] if call.startswith("memory ")]
    assert made == [], "it is known what one holds"
    await driver.close()


async def test_they_give_way_to_a_template_that_is_being_built() -> None:
    most, size = 2 * MIB + 130, 1000
    driver = await with_pool(50, 9, max_committed_memory_mib=most)
    manager, seen = driver.manager, list[int]()

    def look(call: str) -> bool:
        if call.startswith("start ") and driver.inside.builds():
            held = manager.budget.committed_mib() + manager.warm_pool.held_mib()
            seen.append(held + size)
        return False

    driver.world.fail = look
    other = spec("second", resources=Resources(memory_mib=size))
    await manager.create(other, None)
    await driver.settled()
    await eventually(lambda: len(manager.templates.listed()) == 2, "none was built")
    assert len(seen) == 1
    assert seen[0] <= most
    await driver.close()
