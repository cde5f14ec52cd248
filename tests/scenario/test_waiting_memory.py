"""How much of the host's memory machines that wait may hold, beside the sandboxes."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES, eventually
from vmdriver.model.phase import Phase

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
    world.fail = Failing(memory=1)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    await full(driver, 1)
    assert len([m for m in world.marks.values() if "/warm-" in m]) == 1
    await driver.close()
