"""Kept memory and the processor that its guest has seen: nobody goes on on another one."""

from __future__ import annotations

import dataclasses

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import PROCESSOR
from tests.scenario.stage import TEMPLATES, operations, running, with_template
from vmdriver.model.phase import Phase
from vmdriver.model.plan import Processor

OTHERS = {
    "microcode": ("microcode was 0x1 and is 0x2", {"microcode": "0x2"}),
    "model": ("the processor was a processor and is another", {"model": "another"}),
    "fewer flags": ("the processor lacks avx", {"flags": ("sse",)}),
    "more flags": ("the processor has besides new", {"flags": ("avx", "new", "sse")}),
}


def other(what: str) -> Processor:
    return PROCESSOR.model_copy(update=OTHERS[what][1])


def loads(driver: FakeDriver) -> int:
    return sum(call.startswith("load test-") for call in driver.world.calls)


@pytest.mark.parametrize("policy", ["cold-boot", "fail"])
@pytest.mark.parametrize("what", OTHERS)
async def test_a_suspended_machine_does_not_go_on_on_another_processor(
    what: str, policy: str
) -> None:
    settings = dataclasses.replace(SETTINGS, on_restore_failure=policy)
    driver = await running(settings=settings)
    assert driver.plan().processor == PROCESSOR
    await driver.manager.stop("s1", "")
    driver.world.processor = other(what)
    await driver.manager.start("s1", "")
    await driver.settled()
    assert loads(driver) == 0, "not a byte"
    record = driver.record()
    said = record.note if policy == "cold-boot" else record.failure.message
    assert OTHERS[what][0] in said
    assert "resume it on the processor" in said, "the way out"
    if policy == "cold-boot":
        assert record.phase is Phase.RUNNING
        assert record.plan.processor == other(what), "it was begun anew"
        assert "s1/not-restored" in driver.world.checkpoints
    else:
        assert record.phase is Phase.FAILED
        assert record.failure.reason == "RestoreFailed"
        driver.world.processor = PROCESSOR
        await driver.manager.start("s1", "")
        await driver.settled()
        assert driver.phase() is Phase.RUNNING
        assert loads(driver) == 1, "its memory was kept for another try"
    await driver.close()


async def test_what_is_suspended_again_is_still_of_the_processor_that_it_began_on() -> (
    None
):
    driver = await running()
    for _ in range(2):
        await driver.manager.stop("s1", "")
        await driver.manager.start("s1", "")
        await driver.settled()
    assert driver.plan().processor == PROCESSOR
    # The microcode changed under the running machine.
    driver.world.processor = other("microcode")
    await driver.manager.stop("s1", "")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert OTHERS["microcode"][0] in driver.record().note
    assert loads(driver) == 2
    await driver.close()


async def test_a_snapshots_memory_is_not_returned_to_on_another_processor() -> None:
    driver = await running()
    found, worker = operations(driver)
    await found.create_snapshot(worker, "one", disk_only=False)
    driver.world.processor = other("fewer flags")
    await found.restore_snapshot(worker, "one")
    await driver.settled()
    assert loads(driver) == 0
    assert OTHERS["fewer flags"][0] in driver.record().note
    await driver.close()


async def test_memory_of_a_driver_that_did_not_note_it_comes_back() -> None:
    driver = await running()
    worker = operations(driver)[1]
    plan = driver.plan().model_copy(update={"processor": None})
    await worker.sandbox.update(plan=plan)
    await driver.manager.stop("s1", "")
    driver.world.processor = other("model")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert loads(driver) == 1
    assert driver.record().note == ""
    await driver.close()


@pytest.mark.parametrize("what", OTHERS)
async def test_a_template_of_another_processor_is_none(what: str) -> None:
    driver = await with_template()
    world = driver.world
    await driver.close()
    world.processor = other(what)
    driver = FakeDriver(world, settings=TEMPLATES)
    await driver.manager.recover()
    assert driver.manager.templates.listed() == []
    before = loads(driver)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.plan("second").template is None
    assert loads(driver) == before, "it booted"
    await driver.close()
