"""A machine that is loaded, or waits, paused, is had while its rules are loaded: whichever comes to its end first, and
whatever happens between the two, no instruction of it runs before its rules are there (the fakes' `check_rules`).
"""

from __future__ import annotations

import asyncio
import copy
from itertools import permutations

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import held_objects
from tests.fakes.turns import Turns
from tests.fakes.world import World
from tests.scenario.comings import BOUND_S, check_that_all_goes
from tests.scenario.comings import begun as begun_to_make
from tests.scenario.comings import host as host_to_make
from tests.scenario.stage import eventually
from vmdriver.model.phase import DomainState, Phase

RULES = "network_guard.keep"
KINDS = {
    "fork": "memory.load",
    "claim": "hypervisor.reassign",
    "resume": "memory.load",
}
ORDERS = [
    (kind, order)
    for kind, call in KINDS.items()
    for order in permutations((RULES, call))
]


async def host(kind: str) -> World:
    """Where `new` will come up in that way."""
    if kind != "resume":
        return await host_to_make(kind)
    driver = FakeDriver(World())
    await driver.manager.recover()
    kept = spec("new", driver_config={"on_stop": "suspend"})
    await driver.manager.create(kept, None)
    await driver.settled()
    await driver.manager.stop("new", "")
    assert driver.phase("new") is Phase.SUSPENDED
    await driver.close()
    return driver.world


async def begun(world: World, kind: str) -> FakeDriver:
    if kind != "resume":
        driver = await begun_to_make(world, kind)
    else:
        driver = FakeDriver(world)
        await driver.manager.recover()
    await driver.settled()  # what was there before is kept as it is
    return driver


async def asked(driver: FakeDriver, kind: str) -> None:
    if kind == "resume":
        await driver.manager.start("new", "")
    else:
        await driver.manager.create(spec("new"), None)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
async def test_both_are_begun_before_either_ends_and_then_it_goes_on(
    kind: str, order: tuple[str, ...]
) -> None:
    driver = await begun(await host(kind), kind)
    turns = Turns(driver, order, 0)
    await asked(driver, kind)
    await turns.held()
    await turns.open()
    await driver.settled()
    assert turns.ended == list(order)
    assert driver.phase("new") is Phase.RUNNING
    assert driver.world.domains[driver.plan("new").domain] is DomainState.RUNNING
    await check_that_all_goes(driver)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
async def test_as_long_as_one_is_missing_it_stands_still(
    kind: str, order: tuple[str, ...]
) -> None:
    driver = await begun(await host(kind), kind)
    turns = Turns(driver, order, 1)
    await asked(driver, kind)
    await turns.held()
    for _ in range(50):
        await asyncio.sleep(0)
    domain, world = driver.plan("new").domain, driver.world
    assert world.domains.get(domain) in {None, DomainState.PAUSED}
    if order[-1] == RULES and kind != "claim":
        within = driver.plan("new").network.namespace
        assert within not in world.ways_out, "and nothing leaves its namespace"
    await turns.open()
    await driver.settled()
    assert world.domains[domain] is DomainState.RUNNING
    await check_that_all_goes(driver)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
async def test_a_kill_between_them_leaves_nothing_that_runs_or_is_in_no_ledger(
    kind: str, order: tuple[str, ...]
) -> None:
    ready = await host(kind)
    count = len(order)
    cases = [(free, e) for free in range(count + 1) for e in range(count + 1 - free)]
    for free, early in cases:
        world = copy.deepcopy(ready)
        driver = await begun(world, kind)
        of_nobody = world.objects() - held_objects(world)
        turns = Turns(driver, order, free, early)
        await asked(driver, kind)
        await turns.held()
        domain = driver.plan("new").domain
        world.dead = True
        runs = world.domains.get(domain) is DomainState.RUNNING
        assert not runs or free == count
        await turns.open()
        await driver.kill()
        left = world.objects() - held_objects(world) - of_nobody
        assert {name for name in left if not name.startswith("file layers/new.")} == (
            set()
        )
        driver = await begun(world, kind)
        await driver.settled()
        await check_that_all_goes(driver)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
async def test_without_its_rules_it_never_runs(
    kind: str, order: tuple[str, ...]
) -> None:
    driver = await begun(await host(kind), kind)
    world, earlier = driver.world, len(driver.world.calls)
    turns = Turns(driver, order, 0)
    failures = iter([True])
    world.fail = lambda call: call.startswith("load rules") and next(failures, False)
    await asked(driver, kind)
    await turns.held()
    await turns.open()
    if kind == "resume":  # it is tried again, with the memory that is not used
        await eventually(lambda: driver.phase("new") is Phase.RUNNING, "it stays down")
    await driver.settled()
    assert next(failures, None) is None, "the failure must have happened"
    calls = world.calls[earlier:]
    first_end = next(n for n, call in enumerate(calls) if call.startswith("destroy"))
    assert not any(call.startswith(("go on", "start")) for call in calls[:first_end])
    if kind != "resume":
        assert driver.phase("new") is Phase.FAILED
        assert "on purpose" in driver.failure("new").message
    await check_that_all_goes(driver)


@pytest.mark.parametrize("order", list(permutations((RULES, KINDS["fork"]))))
async def test_a_fork_that_cannot_be_loaded_boots_behind_its_rules(
    order: tuple[str, ...],
) -> None:
    driver = await begun(await host("fork"), "fork")
    world = driver.world
    turns = Turns(driver, order, 0)
    world.fail = lambda call: call.startswith("load test")
    await asked(driver, "fork")
    await turns.held()
    await turns.open()
    await driver.settled()
    assert driver.phase("new") is Phase.RUNNING
    domain = driver.plan("new").domain
    assert world.calls.index(f"start {domain}") > world.calls.index(
        f"load rules {driver.plan('new').network.lease.tap}"
    )
    await check_that_all_goes(driver)


@pytest.mark.parametrize("wish", ["stop", "delete"])
@pytest.mark.parametrize(("kind", "order"), ORDERS)
async def test_a_stop_or_delete_between_them_leaves_nothing(
    kind: str, order: tuple[str, ...], wish: str
) -> None:
    ready = await host(kind)
    for free in range(len(order) + 1):
        driver = await begun(copy.deepcopy(ready), kind)
        turns = Turns(driver, order, free)
        await asked(driver, kind)
        await turns.held()
        domain = driver.plan("new").domain
        ask = driver.manager.stop if wish == "stop" else driver.manager.delete
        ending = asyncio.ensure_future(ask("new", ""))  # type: ignore[arg-type]
        for _ in range(20):
            await asyncio.sleep(0)
        await turns.open()
        async with asyncio.timeout(BOUND_S):
            await ending
        assert domain not in driver.world.domains
        if wish == "stop":
            assert driver.phase("new") in {Phase.STOPPED, Phase.SUSPENDED}
            lease = driver.plan("new").network.lease
            assert lease.tap not in driver.world.taps
            assert lease.tap not in driver.world.ways_out
        await check_that_all_goes(driver)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wish", ["stop", "delete"])
async def test_rules_that_hang_hold_up_no_stop_and_no_delete(
    kind: str, wish: str
) -> None:
    driver = await begun(await host(kind), kind)
    reached = asyncio.Event()
    guard = driver.inside.ports.network_guard
    keep = guard.keep

    async def hung(*_: object, **__: object) -> None:
        guard.keep = keep  # type: ignore[method-assign]
        reached.set()
        await asyncio.get_running_loop().create_future()

    guard.keep = hung  # type: ignore[method-assign]
    await asked(driver, kind)
    async with asyncio.timeout(BOUND_S):
        await reached.wait()
        domain = driver.plan("new").domain
        await eventually(
            lambda: driver.world.domains.get(domain) is DomainState.PAUSED,
            "it is not loaded meanwhile",
        )
        ask = driver.manager.stop if wish == "stop" else driver.manager.delete
        await ask("new", "")
    assert domain not in driver.world.domains
    await check_that_all_goes(driver)
