"""What may pass costs nobody their memory; `--cold` gives it up in every phase."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from tests.fakes.settings import SETTINGS
from tests.scenario.stage import operations, running, ticked
from vmdriver.errors import (
    HostError,
    HypervisorError,
    LoadRefused,
    StorageError,
    TimedOut,
)
from vmdriver.host import facts
from vmdriver.lifecycle.memory.restore_tries import RestoreTries, Verdict, final
from vmdriver.model.phase import DomainState, Phase
from vmdriver.model.plan import LaunchPlan


@pytest.mark.parametrize(
    "call", ["write resume files", "make tap", "load test-", "go on", "renew", "save"]
)
async def test_what_passes_is_waited_for(call: str) -> None:
    """A full disk, a record that could not be saved, a machine that answers late."""
    driver = await running()
    domain = await ticked(driver)
    await driver.manager.stop("s1", "")
    numbers = itertools.count()
    # Of the records: the third, which says that the checkpoint is used.
    first = 3 if call == "save" else 0

    def fails(made: str) -> bool:
        return made.startswith(call) and next(numbers) in {first, first + 1}

    driver.world.fail = fails
    await driver.manager.start("s1", "")
    await driver.settled()
    assert next(numbers) > first + 1, "it has failed on the way"
    assert driver.phase() is Phase.RUNNING
    assert driver.memory.tick(domain) == 2
    assert driver.world.starts[domain] == 1, "it was not booted"
    assert driver.world.lived == [(domain, 1), (domain, 2)]
    await driver.close()


@pytest.mark.parametrize("step", ["read", "identify", "damage", "saved", "lend"])
async def test_a_checkpoint_that_cannot_be_read_for_a_while_is_not_damaged(
    step: str,
) -> None:
    """EIO, ENOMEM, a file system that was not mounted yet: once is enough."""
    driver = await running()
    domain = await ticked(driver)
    await driver.manager.stop("s1", "")
    real, calls = getattr(driver.memory_store, step), itertools.count()

    async def unreadable(*arguments: Any, **named: Any) -> Any:
        if next(calls) < 1:
            raise StorageError("checkpoint suspended cannot be read")
        return await real(*arguments, **named)

    setattr(driver.memory_store, step, unreadable)
    await driver.manager.start("s1", "")
    await driver.settled(30)
    assert next(calls) > 1
    assert driver.memory.tick(domain) == 2
    assert driver.world.starts[domain] == 1, "it was not booted"
    await driver.close()


async def test_a_qemu_that_is_killed_at_every_load_says_nothing_of_the_checkpoint() -> (
    None
):
    """By an OOM killer, say: as often as QEMU's own word is heard before it is believed."""
    driver = await running()
    domain = await ticked(driver)
    await driver.manager.stop("s1", "")
    load, loads = driver.memory.load, itertools.count()

    async def killed(plan: LaunchPlan, *rest: Any) -> None:
        if next(loads) >= 3:
            await load(plan, *rest)
            return
        driver.world.domains[plan.domain] = DomainState.OFF
        raise HypervisorError("qemu unexpectedly closed the monitor")

    driver.memory.load = killed  # type: ignore[method-assign]
    await driver.manager.start("s1", "")
    await driver.settled(20)
    assert next(loads) == 4
    assert driver.memory.tick(domain) == 2
    assert driver.world.starts[domain] == 1, "it was not booted"
    await driver.close()


async def test_a_qemu_that_cannot_be_started_costs_a_failure_and_no_memory() -> None:
    settings = dataclasses.replace(SETTINGS, restore_retry_s=0.5)
    driver = await running(settings=settings)
    domain = await ticked(driver)
    await driver.manager.stop("s1", "")
    driver.world.fail = lambda call: call.startswith("load test-")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.phase() is Phase.FAILED
    driver.world.fail = lambda _call: False
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.memory.tick(domain) == 2
    await driver.close()


async def test_too_little_memory_on_the_host_is_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = dataclasses.replace(SETTINGS, restore_retry_s=0.0)
    driver = await running(settings=settings)
    domain = await ticked(driver)
    await driver.manager.stop("s1", "")
    monkeypatch.setattr(facts, "available_memory_bytes", lambda: 1)
    await driver.manager.start("s1", "")
    await driver.settled()
    record = driver.record()
    assert record.phase is Phase.FAILED, "whatever on_restore_failure says"
    assert record.failure.reason == "RestoreFailed"
    assert "the memory is kept" in record.failure.message
    assert "s1/suspended" in driver.world.checkpoints
    monkeypatch.undo()
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.memory.tick(domain) == 2
    await driver.close()


@pytest.mark.parametrize("phase", [Phase.SUSPENDED, Phase.FAILED, Phase.RESUMING])
async def test_a_cold_resume_drops_the_memory_in_every_phase(phase: Phase) -> None:
    limit_s = 0.0 if phase is Phase.FAILED else 60.0
    driver = await running(
        settings=dataclasses.replace(SETTINGS, restore_retry_s=limit_s)
    )
    found, worker = operations(driver)
    world, domain = driver.world, worker.sandbox.record.plan.domain
    await found.suspend(worker)
    if phase is not Phase.SUSPENDED:
        world.fail = lambda made: made == "write resume files"
        await driver.manager.start("s1", "")
        await driver.in_phase("s1", phase)
        if phase is Phase.RESUMING:
            await driver.troubled()
    await found.resume(worker, cold=True)
    assert worker.sandbox.record.phase is Phase.RUNNING
    assert not worker.sandbox.record.cold
    assert world.starts[domain] == 2
    assert "s1/suspended" not in world.checkpoints
    assert worker.sandbox.record.memory is None
    await driver.close()


async def test_a_cold_resume_of_a_running_sandbox_changes_nothing() -> None:
    driver = await running()
    found, worker = operations(driver)
    domain = await ticked(driver)
    await found.resume(worker, cold=True)
    assert driver.memory.tick(domain) == 2
    assert not worker.sandbox.record.cold
    await driver.close()


def test_verdicts() -> None:
    late, full = TimedOut("late"), StorageError("full")
    tries = RestoreTries(60)
    for used in (True, False):
        assert tries.verdict(final(full), used=used, now_s=0) is Verdict.GIVE_UP
    assert tries.verdict(late, used=False, now_s=1000) is Verdict.AGAIN
    assert tries.verdict(full, used=False, now_s=1059) is Verdict.AGAIN
    assert tries.verdict(late, used=False, now_s=1060) is Verdict.KEEP
    assert tries.verdict(late, used=True, now_s=1060) is Verdict.GIVE_UP
    tries.begin()
    assert tries.verdict(late, used=True, now_s=1061) is Verdict.AGAIN
    killed = HypervisorError("qemu unexpectedly closed the monitor")
    word = LoadRefused("load of migration failed: Invalid argument")
    for error in (late, full, killed, word, killed, killed, word):
        assert tries.not_loaded(error) is error
    last = tries.not_loaded(word)
    assert tries.verdict(last, used=False, now_s=1061) is Verdict.GIVE_UP
    assert isinstance(word, HostError)
