"""What a machine is made of is had side by side: whichever part comes to its end first, and whatever happens between
any two of them (a kill, a failure, a stop, a delete, another create), nothing is left over, nothing is given twice.
"""

from __future__ import annotations

import asyncio
import copy
from itertools import permutations

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import held_objects
from tests.fakes.turns import Turns
from tests.scenario.comings import BOUND_S, begun, check_that_all_goes, host
from tests.scenario.stage import eventually
from vmdriver.model.phase import Phase

MADE = ("disks.create_overlay", "launch_files.write", "network.make_tap")
TAKEN_OVER = ("launch_files.take_over", "network.reassign_tap")
KINDS = {"boot": MADE, "fork": MADE, "claim": TAKEN_OVER}
ORDERS = [(kind, order) for kind, all_ in KINDS.items() for order in permutations(all_)]
EFFECTS = {
    "disks.create_overlay": "complete overlay",
    "launch_files.write": "write launch files",
    "launch_files.take_over": "take over files",
    "network.make_tap": "make namespace",
    "network.reassign_tap": "mark tap",
}
"""A call of the host's in each of them."""


@pytest.mark.parametrize(("kind", "order"), ORDERS)
async def test_a_kill_between_any_two_of_them_leaves_nothing_that_is_in_no_ledger(
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
        await driver.manager.create(spec("new"), None)
        await turns.held()
        assert turns.ended == list(order[:free])
        world.dead = True
        await turns.open()
        await driver.kill()
        # A layer that nobody needs any more is found by its name; unowned ones by their marks.
        left = world.objects() - held_objects(world) - of_nobody
        assert {name for name in left if not name.startswith("file layers/new.")} == (
            set()
        )
        driver = await begun(world, kind)
        await driver.settled()
        await check_that_all_goes(driver)


@pytest.mark.parametrize(("kind", "order"), ORDERS)
async def test_when_one_fails_the_others_come_to_their_end_and_all_is_given_back(
    kind: str, order: tuple[str, ...]
) -> None:
    ready = await host(kind)
    for failing in order:
        world = copy.deepcopy(ready)
        driver = await begun(world, kind)
        before, earlier = world.objects(), len(world.calls)
        turns = Turns(driver, order, order.index(failing) + 1)
        world.fail = lambda call, at=EFFECTS[failing]: call.startswith(at)  # type: ignore[misc]
        await driver.manager.create(spec("new"), None)
        await turns.held()
        for _ in range(20):
            await asyncio.sleep(0)
        if failing != order[-1]:
            undone = [n for n in world.calls[earlier:] if n.startswith("remove")]
            assert not undone, "while others are under way"
        await turns.open()
        await driver.settled()
        assert turns.ended == list(order)
        assert driver.phase("new") is Phase.FAILED
        assert "on purpose" in driver.failure("new").message
        kept = {n for n in held_objects(world) if n.startswith(("user ", "file lay"))}
        new = {n for n in world.objects() - before if not n.startswith("file layers/")}
        if kind != "claim":  # else another machine waits by now, or will
            assert new <= kept, "only what it keeps until it is deleted"
            assert not {n for n in new if n.startswith(("tap", "namespace", "machine"))}
        world.fail = lambda _: False
        await check_that_all_goes(driver)


@pytest.mark.parametrize("wish", ["stop", "delete"])
@pytest.mark.parametrize(("kind", "order"), ORDERS)
async def test_a_stop_or_delete_between_any_two_of_them_leaves_nothing(
    kind: str, order: tuple[str, ...], wish: str
) -> None:
    ready = await host(kind)
    for free in range(len(order) + 1):
        driver = await begun(copy.deepcopy(ready), kind)
        turns = Turns(driver, order, free)
        await driver.manager.create(spec("new"), None)
        await turns.held()
        ask = driver.manager.stop if wish == "stop" else driver.manager.delete
        asked = asyncio.ensure_future(ask("new", ""))  # type: ignore[arg-type]
        for _ in range(20):
            await asyncio.sleep(0)
        await turns.open()
        async with asyncio.timeout(BOUND_S):
            await asked
        assert turns.ended == list(order), "what was begun goes on to its end"
        if wish == "stop":
            assert driver.phase("new") is Phase.STOPPED
            lease = driver.plan("new").network.lease
            assert lease.tap not in driver.world.taps
            assert lease.tap not in driver.world.namespaces
            if kind != "claim":  # what waited had a table, which goes with the address
                assert lease.tap not in driver.world.tables
        await check_that_all_goes(driver)


@pytest.mark.parametrize("kind", KINDS)
async def test_two_that_are_made_at_once_have_nothing_in_common(kind: str) -> None:
    driver = await begun(await host(kind), kind)
    calls = KINDS[kind] if kind != "claim" else MADE  # one machine waits: one is made
    turns = Turns(driver, calls, 0)
    for name in ("new", "other"):
        await driver.manager.create(spec(name), None)
    await turns.held()
    await turns.open()
    await driver.settled()
    plans = [driver.plan(name) for name in ("new", "other")]
    for one, other in (
        [p.domain for p in plans],
        [p.network.lease.tap for p in plans],
        [p.disk("root").path for p in plans],
        [p.disk("seed").path for p in plans],
    ):
        assert one != other
    world = driver.world
    assert all(driver.phase(name) is Phase.RUNNING for name in ("new", "other"))
    assert {world.taps[p.network.lease.tap].split("/")[-1] for p in plans} == {
        "new",
        "other",
    }
    await check_that_all_goes(driver)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_disk_that_is_full_from_any_write_of_a_ledger_on_leaves_nothing_in_the_way(
    kind: str,
) -> None:
    ready = await host(kind)
    for at in range(20):
        driver = await begun(copy.deepcopy(ready), kind)
        world, writes = driver.world, 0
        of_nobody = world.objects() - held_objects(world)

        def full(call: str, at: int = at) -> bool:
            nonlocal writes
            writes += call == "append to journal"
            return call == "append to journal" and writes > at

        world.fail = full
        await driver.manager.create(spec("new"), None)
        await eventually(lambda d=driver: has_ended(d), "it goes on and on")  # type: ignore[misc]
        # What runs has the next one made: after a claim one that waits, after a boot a template.
        makes_more = driver.phase("new") is Phase.RUNNING and kind == "boot"
        if kind != "claim" and not makes_more:
            assert world.objects() - held_objects(world) <= of_nobody
        world.fail = lambda _: False
        driver.hint("new")
        await driver.settled()
        await check_that_all_goes(driver)
        if writes <= at:
            assert at >= 5, "there are so many writes at least"
            return
    raise AssertionError("a create writes its ledger more than 20 times")


def has_ended(driver: FakeDriver) -> bool:
    """It runs, has failed, or waits for space."""
    phases = {Phase.RUNNING, Phase.FAILED}
    return driver.phase("new") in phases or bool(driver.trouble("new"))
