"""What belongs to unowned machines and cannot be given back at once: it goes while the driver runs."""

from __future__ import annotations

import dataclasses
import logging
import random

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.gate import Gate
from tests.fakes.world import World
from tests.scenario.stage import (
    TEMPLATES,
    eventually,
    template_files,
    with_template,
)
from vmdriver.errors import DriverError, Exhausted
from vmdriver.model.ids import mark, parse_mark
from vmdriver.model.phase import Phase

ALWAYS = 10**9


class Failing:
    """Calls that begin with one of these words fail, so often each."""

    def __init__(self, **times: int) -> None:
        self.left = {words.replace("_", " "): n for words, n in times.items()}

    def __call__(self, call: str) -> bool:
        for words, left in self.left.items():
            if call.startswith(words) and left:
                self.left[words] -= 1
                return True
        return False


def unowned(world: World) -> list[str]:
    """Everything on the host that carries a mark of no sandbox."""
    marks = {
        **{f"machine {name}": world.marks[name] for name in world.domains},
        **{f"tap {name}": text for name, text in world.taps.items()},
        **{f"table {name}": text for name, text in world.tables.items()},
    }
    owners = {what: parse_mark(text, "test") or "" for what, text in marks.items()}
    return [what for what, o in owners.items() if o.startswith(("template-", "warm-"))]


def leases(driver: FakeDriver) -> list[str]:
    """Who has an address."""
    return driver.inside.leases()


@pytest.mark.parametrize(
    "what",
    ["destroy", "remove_rules", "remove_tap", "remove_checkpoint", "remove_layers"],
)
async def test_what_a_build_cannot_give_back_goes_while_the_driver_runs(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Three times: in the build or when it ends, and once more."""
    driver = FakeDriver(World(), settings=TEMPLATES)
    world, failing = driver.world, Failing(capture=1, **{what: ALWAYS})
    world.fail = failing
    await driver.manager.recover()
    with caplog.at_level(logging.INFO, "vmdriver.lifecycle.templates.leftovers"):
        await driver.manager.create(spec("first"), None)
        await driver.settled()
        await eventually(
            lambda: "tried again" in caplog.text, "all of it was given back"
        )
        (owner,) = driver.inside.left_over()
        assert unowned(world) or template_files(world)
        assert (owner in leases(driver)) == bool(unowned(world))
        before = failing.left[what.replace("_", " ")]
        await eventually(
            lambda: failing.left[what.replace("_", " ")] < before - 1,
            "it is not tried again",
        )
        failing.left.clear()
        await eventually(lambda: not driver.leftovers.has(owner), "it stays")
    assert leases(driver) == ["first"]
    assert unowned(world) == []
    assert template_files(world) == set()
    assert not driver.memory_store.reserved
    assert driver.manager.templates.layers() == set()
    told = [r.levelname for r in caplog.records if r.name.endswith(".leftovers")]
    assert told == ["WARNING", "INFO"], "it is told once"
    assert driver.phase("first") is Phase.RUNNING
    await driver.close()


async def test_a_machine_that_cannot_be_ended_keeps_what_it_runs_on() -> None:
    """Its table above all: what runs in it is somebody's image."""
    driver = FakeDriver(World(), settings=TEMPLATES)
    world, failing = driver.world, Failing(capture=1, destroy=ALWAYS)
    world.fail = failing
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    await eventually(driver.inside.left_over, "all of it was given back")
    before = failing.left["destroy"]
    await eventually(
        lambda: failing.left["destroy"] < before - 1, "it is not tried again"
    )
    kinds = [what.split()[0] for what in unowned(world)]
    assert sorted(kinds) == ["machine", "table", "tap"]
    assert any("layers/template-" in path for path in template_files(world))
    failing.left.clear()
    await eventually(lambda: not driver.inside.left_over(), "it stays")
    assert unowned(world) == []
    assert template_files(world) == set()
    await driver.close()


async def test_a_build_whose_name_cannot_be_made_durable_leaves_nothing() -> None:
    """It has the name by then: the next driver would find a template without its layer."""
    driver = FakeDriver(World(), settings=TEMPLATES)
    world = driver.world
    failing = world.fail = Failing(sync_name=1)
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    await eventually(lambda: not driver.inside.builds(), "builds have no end")
    assert not failing.left["sync name"]
    assert template_files(world) == set()
    assert unowned(world) == []
    await driver.close()


async def test_a_machine_that_cannot_be_ended_counts_in_the_hosts_memory() -> None:
    driver = FakeDriver(
        World(), settings=dataclasses.replace(TEMPLATES, max_committed_memory_mib=6000)
    )
    failing = driver.world.fail = Failing(destroy=ALWAYS)
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await driver.settled()
    await eventually(driver.leftovers.memory_mib, "the build's machine was ended")
    budget = driver.inside.budget
    size = budget.size_mib(driver.record("first"))
    assert driver.leftovers.memory_mib() == size
    assert budget.committed_mib() == 2 * size
    with pytest.raises(Exhausted, match=f"{2 * size} MiB of 6000 MiB are committed"):
        await driver.manager.create(spec("second"), None)
    failing.left.clear()
    await eventually(lambda: budget.committed_mib() == size, "it counts for ever")
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    await driver.close()


async def test_what_cannot_be_given_back_is_not_met_by_the_next_build_of_that_template() -> (
    None
):
    """It would have the same tap, and lose it to the clean-up of the one before."""
    driver = await with_template(Gate())
    (template,) = driver.manager.templates.listed()
    failing = driver.world.fail = Failing(remove_rules=ALWAYS)
    await driver.manager.templates.remove(template.key)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    await eventually(driver.manager.templates.listed, "it was not built anew")
    (anew,) = driver.manager.templates.listed()
    owner = f"template-{anew.key}"
    await eventually(lambda: driver.leftovers.has(owner), "its table went")
    await driver.manager.templates.remove(anew.key)
    built = [call for call in driver.world.calls if call.startswith("capture")]
    await driver.manager.create(spec("third"), None)
    await driver.settled()
    await eventually(lambda: not driver.inside.builds(), "nothing is decided")
    assert built == [c for c in driver.world.calls if c.startswith("capture")]
    failing.left.clear()
    await eventually(lambda: not driver.leftovers.has(owner), "its table stays")
    await driver.manager.create(spec("fourth"), None)
    await eventually(driver.manager.templates.listed, "it is never built again")
    await driver.close()


@pytest.mark.parametrize("then", ["start", "delete"])
async def test_a_table_is_not_taken_from_a_sandbox_that_has_the_address_by_now(
    then: str,
) -> None:
    """A fork that was claimed, and whose claim failed half way."""
    driver = await with_template(Gate(), warm_pool=1)
    world, pool = driver.world, driver.manager.warm_pool
    (template,) = driver.manager.templates.listed()
    await eventually(lambda: pool.count(template.key) == 1, "nobody waits")
    (waiting,) = driver.inside.waiting()
    tap = waiting.plan.network.lease.tap
    failing = world.fail = Failing(mark_tap=1, remove_tap=2, load_rules=0)
    await driver.manager.create(spec("second"), None)
    await eventually(lambda: driver.phase("second") is Phase.FAILED, "it was claimed")
    assert not failing.left["mark tap"]
    assert waiting.plan.domain not in world.domains
    if then == "start":
        await eventually(lambda: tap not in world.taps, "the fork's tap stays")
        assert tap in world.tables, "the sandbox may be loading its own at any moment"
        await driver.manager.stop("second", "")
        await driver.manager.start("second", "")
        await driver.settled()
        assert driver.phase("second") is Phase.RUNNING
        assert driver.plan("second").network.lease.tap == tap
        await eventually(lambda: not driver.leftovers.has(waiting.owner), "it stays")
        assert world.tables[tap] == world.taps[tap] == mark("test", "second")
    else:
        await driver.manager.delete("second", "")
        await eventually(lambda: not driver.leftovers.has(waiting.owner), "it stays")
        assert tap not in world.tables
        assert tap not in world.taps
    await driver.close()


async def test_forks_that_cannot_be_ended_count_among_those_that_wait() -> None:
    """Else the pool makes machines without end while none of them can be ended."""
    settings = dataclasses.replace(TEMPLATES, warm_pool=2, warm_pool_memory_mib=64)
    driver = FakeDriver(World(), settings=settings)
    world = driver.world
    await driver.manager.recover()
    await driver.manager.create(spec("first"), None)
    await eventually(lambda: len(driver.inside.waiting()) == 2, "nobody waits")
    (template,) = driver.manager.templates.listed()
    failing = world.fail = Failing(destroy=ALWAYS)
    await driver.manager.templates.remove(template.key)
    assert driver.leftovers.machines() == 2
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    failing.left["destroy"] = 0
    await eventually(lambda: not driver.leftovers.machines(), "they stay")
    await driver.close()


async def test_an_address_that_could_not_be_noted_goes_with_the_sandbox() -> None:
    driver = FakeDriver(World())
    driver.world.fail = Failing(append_to_journal=1)
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert driver.failure().message.startswith("OnPurpose: append to journal")
    assert leases(driver) == []
    await driver.manager.delete("s1", "")
    assert leases(driver) == []
    await driver.close()


@pytest.mark.parametrize("seed", range(1, 5))
async def test_a_host_where_every_fiftieth_call_fails_has_nothing_of_nobody_at_the_end(
    seed: int,
) -> None:
    world, chance = World(), random.Random(seed)
    settings = dataclasses.replace(TEMPLATES, warm_pool=2)
    driver = FakeDriver(world, settings=settings)
    await driver.manager.recover()
    world.fail = lambda _call: chance.random() < 0.02
    for round_ in range(12):
        name = f"s{round_}"
        try:
            shape = {"disk_mib": 9000 + round_ % 3}
            await driver.manager.create(spec(name, driver_config=shape), None)
            await driver.settled(30)  # what fails twice is tried again after a while
            await driver.manager.delete(name, "")
            for template in driver.manager.templates.listed():
                if chance.random() < 0.5:
                    await driver.manager.templates.remove(template.key)
        except DriverError:
            pass
    world.fail = lambda _call: False
    for name in driver.sandboxes():
        await driver.manager.delete(name, "")
    templates = driver.manager.templates
    await eventually(lambda: not driver.inside.builds(), "builds have no end")
    for template in templates.listed():
        await templates.remove(template.key)
    await eventually(
        lambda: not (world.objects() or template_files(world) or leases(driver)),
        "something stays",
    )
    await driver.close()


async def test_a_driver_that_ends_leaves_the_rest_to_the_next_ones_sweep() -> None:
    driver = await with_template(Gate(), warm_pool=1)
    world = driver.world
    await eventually(driver.inside.waiting, "nobody waits")
    world.fail = Failing(destroy=ALWAYS)
    await driver.close()
    assert [what for what in unowned(world) if what.startswith("machine")]
    world.fail = lambda _call: False
    again = FakeDriver(world, settings=TEMPLATES)
    await again.manager.recover()
    assert unowned(world) == []
    await again.close()
