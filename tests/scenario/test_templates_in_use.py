"""A template that is removed while somebody is at it: what he needs stays until he has it, and nothing of it stays longer."""

from __future__ import annotations

import asyncio

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.gate import Gate
from tests.fakes.limits import limit
from tests.scenario.stage import (
    TEMPLATES,
    eventually,
    template_files,
    with_template,
)
from vmdriver.errors import NotFound
from vmdriver.model.phase import Intent, Phase

FOUND = ("checkpoint:identify",)
NOTED = ("checkpoint:identify", "record:before-save")
LAUNCHING = ("checkpoint:identify", "record:before-save", "checkpoint:read")
LOADED = ("checkpoint:identify", "load:paused")


@pytest.mark.parametrize("where", [FOUND, NOTED, LAUNCHING, LOADED])
async def test_a_template_removed_during_a_create_stays_until_the_create_has_it(
    where: tuple[str, ...],
) -> None:
    gate = Gate()
    driver = await with_template(gate)
    world, templates = driver.world, driver.manager.templates
    (template,) = templates.listed()
    gate.shut(*where)
    await driver.manager.create(spec("second"), None)
    await gate.reached()
    await templates.remove(template.key)
    assert not templates.listed(), "nobody else finds it from now on"
    with pytest.raises(NotFound):
        await templates.remove(template.key)
    gate.open()
    await driver.settled()
    record = driver.record("second")
    assert record.phase is Phase.RUNNING
    assert record.plan.domain not in world.starts, "it went on from the template"
    assert template.layer in record.layers
    assert template_files(world) == {template.layer}, "only what the sandbox needs"
    await driver.manager.stop("second", "")
    await driver.manager.start("second", "")
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    for name in ("second", "first"):
        await driver.manager.delete(name, "")
    await driver.close()
    assert world.objects() == set()


async def test_a_template_that_is_collected_stays_for_whoever_has_just_found_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit(monkeypatch, most_templates=1)
    gate = Gate()
    driver = await with_template(gate)
    world, templates = driver.world, driver.manager.templates
    (old,) = templates.listed()
    gate.shut(*FOUND)
    await driver.manager.create(spec("second"), None)
    await gate.reached()
    await driver.manager.create(spec("other", driver_config={"disk_mib": 9000}), None)
    await eventually(lambda: old not in templates.listed(), "it was not collected")
    gate.open()
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    assert driver.plan("second").domain not in world.starts
    (new,) = templates.listed()
    assert new.layer != old.layer
    await driver.close()


async def test_a_create_that_comes_to_nothing_gives_a_removed_template_back() -> None:
    gate = Gate()
    driver = await with_template(gate)
    (template,) = driver.manager.templates.listed()
    gate.shut(*FOUND)
    await driver.manager.create(spec("second"), None)
    await gate.reached()
    await driver.manager.templates.remove(template.key)
    assert template_files(driver.world), "it is in use"
    going = asyncio.create_task(driver.manager.delete("second", ""))
    while driver.record("second").intent is not Intent.DELETED:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    gate.open()
    await going
    assert template_files(driver.world) == set()
    await driver.close()


async def test_a_removed_templates_layer_stays_while_the_records_are_not_there() -> (
    None
):
    """As when their disk was not mounted: one of those sandboxes may stand on it."""
    driver = await with_template(Gate())
    world = driver.world
    (template,) = driver.manager.templates.listed()
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    await driver.close()
    records, world.records_there = dict(world.records), False
    world.records.clear()
    again = FakeDriver(world, settings=TEMPLATES)
    await again.manager.recover()
    await again.manager.templates.remove(template.key)
    assert template.layer in world.files
    await again.close()
    world.records, world.records_there = records, True
    last = FakeDriver(world, settings=TEMPLATES)
    await last.manager.recover()
    await last.manager.stop("second", "")
    await last.manager.start("second", "")
    await last.settled()
    assert last.phase("second") is Phase.RUNNING
    assert set(last.record("second").layers) <= world.files
    await last.close()


@pytest.mark.parametrize("where", [FOUND, LOADED])
async def test_the_next_driver_finishes_a_removal_that_waited_for_a_user(
    where: tuple[str, ...],
) -> None:
    gate = Gate()
    driver = await with_template(gate)
    world = driver.world
    (template,) = driver.manager.templates.listed()
    gate.shut(*where)
    await driver.manager.create(spec("second"), None)
    await gate.reached()
    await driver.manager.templates.remove(template.key)
    world.dead = True
    gate.open()
    await driver.kill()
    again = FakeDriver(world, settings=TEMPLATES)
    await again.manager.recover()
    assert not again.manager.templates.listed(), "it was removed before the kill"
    await again.settled()
    assert again.phase("second") is Phase.RUNNING
    await eventually(lambda: not again.inside.builds(), "builds have no end")
    needed = again.record("second").layers
    left = {path for path in template_files(world) if template.key in path}
    # The sandbox may have booted, and have had a template built by now: another one.
    left -= {
        path
        for t in again.manager.templates.listed()
        for path in (t.layer, t.directory)
    }
    assert left <= set(needed)
    await again.close()


async def test_a_waiting_machine_is_only_given_to_those_of_its_own_template() -> None:
    gate = Gate()
    driver = await with_template(gate, warm_pool=1)
    world, templates = driver.world, driver.manager.templates
    pool = driver.manager.warm_pool
    (old,) = templates.listed()
    await eventually(lambda: pool.count(old.key) == 1, "nobody waits")
    await driver.manager.create(spec("claims"), None)  # the pool fills up again
    gate.shut("load:paused")
    await gate.reached()  # one is being made on the old template
    await templates.remove(old.key)
    await driver.manager.create(spec("boots"), None)
    await eventually(templates.listed, "it was not built anew")
    (new,) = templates.listed()
    assert new.key == old.key
    assert new.layer != old.layer
    assert old.layer in world.files, "the fork that is being made stands on it"
    gate.open()
    await eventually(lambda: pool.count(new.key) == 1, "the pool was not filled")
    assert sum("/warm-" in world.marks[d] for d in world.domains) == 1
    (waiting,) = driver.inside.waiting()
    assert new.layer in waiting.plan.disk("root").backing
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    record = driver.record("second")
    assert new.layer in record.layers
    assert old.layer not in record.layers
    await driver.close()


async def test_a_fork_that_was_made_while_its_template_went_is_ended() -> None:
    gate = Gate()
    gate.shut("load:paused")
    driver = await with_template(gate, warm_pool=1)
    world = driver.world
    await gate.reached()
    (template,) = driver.manager.templates.listed()
    await driver.manager.templates.remove(template.key)
    gate.open()
    await eventually(lambda: not template_files(world), "it is held for ever")
    assert not [d for d in world.domains if "/warm-" in world.marks[d]]
    assert not driver.manager.warm_pool.layers()
    await driver.close()
