"""What a driver counts of its sandboxes."""

from __future__ import annotations

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from tests.scenario.stage import eventually, waiting, with_template
from vmdriver.model.wishes import Wish
from vmdriver.telemetry import seen
from vmdriver.telemetry.shown import Shown


def values(driver: FakeDriver, shown: Shown) -> dict[tuple[str, ...], float]:
    found = seen.of_core(driver.core, 1000, 4096)
    return {tuple(v.attributes.values()): v.number for v in found if v.shown is shown}


async def test_a_sandbox_is_counted_by_phase_and_gives_back_what_it_had() -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    blocks, users = values(driver, seen.ADDRESSES), values(driver, seen.USERS)
    await driver.manager.create(spec("s1"), None)
    await driver.settled()
    assert values(driver, seen.SANDBOXES) == {("running", "running", ""): 1}
    assert values(driver, seen.COMMITTED)[()] == driver.plan("s1").memory_mib * 2**20
    assert values(driver, seen.ADDRESSES)[()] == blocks[()] - 1
    assert values(driver, seen.USERS)[()] == users[()] - 1
    await driver.manager.delete("s1", "")
    await driver.settled()
    assert values(driver, seen.SANDBOXES) == {}
    assert values(driver, seen.COMMITTED)[()] == 0
    assert values(driver, seen.ADDRESSES) == blocks
    await driver.close()


async def test_watchers_templates_and_machines_that_wait_are_counted() -> None:
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    assert values(driver, seen.TEMPLATES)[()] == 1
    assert values(driver, seen.WAITING)[()] == 1
    one = driver.broadcaster.subscribe()
    assert values(driver, seen.WATCHERS)[()] == 1
    driver.broadcaster.unsubscribe(one)
    assert values(driver, seen.WATCHERS)[()] == 0
    await driver.close()


async def test_how_long_a_sandbox_is_on_its_way_is_told_and_where_none_is_it_is_0() -> (
    None
):
    driver = FakeDriver(World())
    await driver.manager.recover()
    await driver.manager.create(spec("s1"), None)
    await driver.settled()
    assert set(values(driver, seen.PHASE_AGE).values()) == {0}
    driver.world.fail = lambda call: call.startswith("remove tap")
    await driver.wish("s1", Wish.DELETE)
    await driver.troubled("s1")
    first = values(driver, seen.PHASE_AGE)[("deleting",)]
    await eventually(
        lambda: values(driver, seen.PHASE_AGE)[("deleting",)] > first + 0.01,
        "its age does not grow",
    )
    others = {p for p, age in values(driver, seen.PHASE_AGE).items() if age}
    assert others == {("deleting",)}
    driver.world.fail = lambda call: False
    driver.hint("s1")
    await driver.gone("s1")
    assert set(values(driver, seen.PHASE_AGE).values()) == {0}
    await driver.close()


async def test_how_many_machines_should_wait_and_how_many_numbers_there_are() -> None:
    driver = await with_template(warm_pool=2)
    assert values(driver, seen.WANTED)[()] == 2
    await waiting(driver, 2)
    assert values(driver, seen.WAITING_MEMORY)[()] > 0
    left, limit = (
        values(driver, seen.ADDRESSES)[()],
        values(driver, seen.ADDRESS_LIMIT)[()],
    )
    assert limit - left == 3, "one runs, two wait"
    assert values(driver, seen.USER_LIMIT)[()] > values(driver, seen.USERS)[()]
    await driver.close()


async def test_any_number_of_workspaces_has_a_bounded_number_of_series() -> None:
    driver = FakeDriver(World())
    await driver.manager.recover()
    own, more = seen.MOST_WORKSPACES, 5
    for number in range(own + more):
        await driver.manager.create(spec(f"s{number}", workspace=f"w{number:03}"), None)
    await driver.manager.create(spec("second", workspace=f"w{own + more - 1:03}"), None)
    await driver.settled()
    found = values(driver, seen.SANDBOXES)
    assert len(found) == own + 1
    assert found["running", "running", f"w{own + more - 1:03}"] == 2
    assert found["running", "running", seen.OTHERS] == more
    assert sum(found.values()) == own + more + 1
    await driver.close()
