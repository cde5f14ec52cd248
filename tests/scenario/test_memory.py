"""Policies around kept memory: what is refused, what follows a failure, who is asked."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

import vmdriver.lifecycle.memory.restore_check as restore_check_module
from tests.fakes.driver import FakeDriver, spec
from tests.fakes.ledgers import held_objects
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES, operations, running, waiting, with_template
from vmdriver.errors import (
    AlreadyExists,
    DriverError,
    Exhausted,
    HostError,
    InvalidRequest,
    NotFound,
    Refused,
)
from vmdriver.extension import LifecycleExtension
from vmdriver.lifecycle.memory.restore_tries import RestoreTries, Verdict
from vmdriver.model.phase import Intent, Phase
from vmdriver.model.plan import LaunchPlan
from vmdriver.model.wishes import Wish


async def test_a_stop_that_suspends_holds_nothing_and_a_start_goes_on() -> None:
    driver = await running()
    domain = driver.plan().domain
    driver.memory.tick(domain)
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.SUSPENDED
    condition = driver.manager.statuses()[0].conditions[0]
    assert (condition.type, condition.status) == ("Suspended", "True")
    world = driver.world
    assert not world.domains
    assert not world.taps
    assert not world.tables
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.SUSPENDED, "stopped again it stays as it is"
    await driver.manager.start("s1", "")
    await driver.settled()
    assert driver.memory.tick(domain) == 2
    assert world.starts[domain] == 1, "it was not booted"
    assert driver.record().memory is None
    await driver.close()


async def test_two_resumes_at_once_are_one() -> None:
    driver = await running()
    await driver.manager.stop("s1", "")
    found, worker = operations(driver)
    await asyncio.gather(
        *(found.resume(worker) for _ in range(5)), driver.manager.start("s1", "")
    )
    assert sum(call.startswith("load test-") for call in driver.world.calls) == 1
    await driver.close()


@pytest.mark.parametrize("policy", ["cold-boot", "fail"])
@pytest.mark.parametrize("part", ["memory", "state"])
async def test_a_damaged_checkpoint_runs_no_instruction(policy: str, part: str) -> None:
    """Of its memory a machine is made meanwhile, and ended; of what says how, none is."""
    driver = await running(
        settings=dataclasses.replace(SETTINGS, on_restore_failure=policy)
    )
    await driver.manager.stop("s1", "")
    world = driver.world
    domain = driver.plan().domain
    world.damaged.add("s1/suspended" if part == "memory" else "s1/suspended/state")
    begun = len(world.calls)
    await driver.manager.start("s1", "")
    await driver.settled()
    record = driver.record()
    calls = world.calls[begun:]
    assert f"go on {domain}" not in calls, "not one instruction"
    loaded = f"load {domain}" in calls
    assert loaded == (part == "memory"), "not a byte of the state"
    if loaded:
        after = calls[calls.index(f"load {domain}") :]
        assert f"destroy {domain}" in after, "it was ended"
    if policy == "fail":
        assert record.phase is Phase.FAILED
        assert record.failure.reason == "RestoreFailed"
        world.damaged.clear()
        await driver.manager.start("s1", "")
        await driver.settled()
        assert driver.phase() is Phase.RUNNING
        assert sum(world.starts.values()) == 1, "its memory was kept for another try"
    else:
        assert record.phase is Phase.RUNNING
        message = driver.manager.statuses()[0].conditions[0].message
        assert "could not be restored" in message
        assert f"{part} has changed" in message
        assert "s1/not-restored" in world.checkpoints
        world.damaged.clear()
        await driver.manager.stop("s1", "")
        await driver.manager.start("s1", "")
        await driver.settled()
        assert driver.record().note == "", "said until the next stop"
    await driver.close()


@pytest.mark.parametrize("call", ["load test-", "renew", "go on"])
async def test_what_fails_on_the_way_back_is_booted_cold_and_never_runs_twice(
    call: str,
) -> None:
    # QEMU's word counts the third time; an answer is waited for until the limit.
    limit_s = 60.0 if call.startswith("load") else 0.0
    driver = await running(
        settings=dataclasses.replace(SETTINGS, restore_retry_s=limit_s)
    )
    await driver.manager.stop("s1", "")
    if call.startswith("load"):
        driver.memory.refuses = "load of migration failed: Invalid argument"
    else:
        driver.world.fail = lambda made: made.startswith(call)
    await driver.manager.start("s1", "")
    await driver.in_phase("s1", Phase.RUNNING)
    driver.world.fail = lambda _made: False
    assert sum(driver.world.starts.values()) == 2
    assert [s for s in driver.world.domains.values() if s == "running"] == ["running"]
    assert driver.record().memory is None
    await driver.close()


async def test_an_expired_token_and_another_hypervisor_stand_in_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restore_check_module, "token_expiry", lambda _token: 1)
    driver = await running()
    await driver.manager.stop("s1", "")
    await driver.manager.start("s1", "")
    await driver.settled()
    assert "token has expired" in driver.record().note
    await driver.close()


class Veto(LifecycleExtension):
    name = "veto"

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.no = ""

    def _say(self, hook: str) -> None:
        self.heard.append(hook)
        if self.no == hook.split()[0]:
            raise Refused(f"not now: {hook}")

    async def before_suspend(self, context, plan: LaunchPlan) -> None:
        await context.save({"suspended": True})
        self._say("before_suspend")

    async def before_snapshot(self, context, plan: LaunchPlan, name: str) -> None:
        self._say(f"before_snapshot {name}")

    async def before_fork(self, context, fork) -> None:
        self._say(f"before_fork {fork.id}")

    async def before_restore(self, context, kind) -> None:
        self._say(f"before_restore {kind.value} {dict(context.saved)}")

    async def after_restore(self, context, kind) -> None:
        self._say(f"after_restore {kind.value}")

    async def after_launch_failed(self, context, reason) -> None:
        self._say(f"after_launch_failed {reason.value}")


async def test_extensions_are_asked_and_told() -> None:
    veto = Veto()
    driver = await running(extensions=[veto])
    found, worker = operations(driver)
    await found.suspend(worker)
    await found.resume(worker)
    await found.create_snapshot(worker, "a", disk_only=False)
    await found.restore_snapshot(worker, "a")
    await driver.settled()
    await driver.manager.create(
        spec("s2", driver_config={"from_snapshot": "s1/a"}), None
    )
    await driver.settled()
    assert veto.heard == [
        "before_suspend",
        "after_launch_failed Suspended",
        "before_restore resumed {'suspended': True}",
        "after_restore resumed",
        "before_snapshot a",
        "after_launch_failed Stopped",
        "before_restore snapshot {'suspended': True}",
        "after_restore snapshot",
        "before_fork s2",
    ]
    await driver.close()


async def test_a_veto_keeps_the_sandbox_running_but_not_from_being_stopped() -> None:
    veto = Veto()
    driver = await running(extensions=[veto])
    found, worker = operations(driver)
    veto.no = "before_suspend"
    with pytest.raises(Refused, match="not now"):
        await found.suspend(worker)
    assert driver.phase() is Phase.RUNNING
    assert worker.sandbox.record.intent is Intent.RUNNING
    assert not driver.world.frozen
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.STOPPED, "the gateway's stop is a shutdown instead"
    veto.no = "before_snapshot"
    await driver.manager.start("s1", "")
    await driver.settled()
    with pytest.raises(Refused, match="not now"):
        await found.create_snapshot(worker, "a", disk_only=False)
    assert worker.sandbox.record.snapshots == ()
    veto.no = "before_fork"
    await driver.close()


@pytest.mark.parametrize(
    "call",
    [
        "begin checkpoint",
        "freeze s",
        "pause",
        "capture",
        "write checkpoint",
        "publish",
        "switch",
    ],
)
async def test_a_capture_that_fails_leaves_the_sandbox_as_it_was(call: str) -> None:
    driver = await running()
    found, worker = operations(driver)
    domain = worker.sandbox.record.plan.domain
    driver.memory.tick(domain)
    for operation in (
        lambda: found.suspend(worker),
        lambda: found.create_snapshot(worker, "a", disk_only=False),
    ):
        failures = iter([True])
        name = call if call != "freeze s" else f"freeze {domain}"
        driver.world.fail = lambda made, n=name, f=failures: (
            made.startswith(n) and next(f, False)
        )
        if call == "switch" and operation.__code__.co_names == ("suspend",):
            continue
        with pytest.raises(HostError):
            await operation()
        driver.world.fail = lambda _made: False
        await driver.settled()
        assert driver.phase() is Phase.RUNNING
        assert not driver.world.frozen
        assert driver.world.domains[domain] == "running"
        assert worker.sandbox.record.snapshots == ()
        assert driver.world.objects() == held_objects(driver.world)
        driver.memory.tick(domain)
    await driver.close()


async def test_a_device_that_is_passed_through_cannot_be_kept() -> None:
    driver = await running()
    found, worker = operations(driver)
    plan = worker.sandbox.record.plan.model_copy(update={"devices": ("0000:01:00.0",)})
    await driver.inside.update("s1", plan=plan)
    with pytest.raises(Refused, match="0000:01:00.0"):
        await found.suspend(worker)
    with pytest.raises(Refused, match="passed-through"):
        await found.create_snapshot(worker, "a", disk_only=False)
    await found.create_snapshot(worker, "a", disk_only=True)
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.STOPPED
    await driver.close()


async def test_snapshots_have_names_limits_and_an_end() -> None:
    settings = dataclasses.replace(SETTINGS, max_snapshots=3, max_layers=8)
    driver = await running(settings=settings)
    found, worker = operations(driver)
    for bad in ("", ".x", "a/b", "x" * 64, "a b", "é"):
        with pytest.raises(InvalidRequest):
            await found.create_snapshot(worker, bad, disk_only=True)
    for name in ("a", "b", "c"):
        await found.create_snapshot(worker, name, disk_only=name == "b")
    with pytest.raises(AlreadyExists):
        await found.create_snapshot(worker, "a", disk_only=True)
    with pytest.raises(Exhausted, match="max_snapshots"):
        await found.create_snapshot(worker, "d", disk_only=True)
    with pytest.raises(NotFound):
        await found.restore_snapshot(worker, "d")
    for name in ("a", "b", "c"):
        await found.delete_snapshot(worker, name)
    with pytest.raises(NotFound):
        await found.delete_snapshot(worker, "a")
    assert len(worker.sandbox.record.layers) == 4
    await found.suspend(worker)
    await found.resume(worker, cold=True)
    await driver.manager.delete("s1", "")
    assert driver.world.objects() == set()
    await driver.close()


async def test_chains_are_bounded_and_merged_when_nobody_needs_them() -> None:
    driver = await running(settings=dataclasses.replace(SETTINGS, max_layers=3))
    found, worker = operations(driver)
    for name in ("a", "b"):
        await found.create_snapshot(worker, name, disk_only=True)
    with pytest.raises(Exhausted, match="3 layers"):
        await found.create_snapshot(worker, "c", disk_only=True)
    for name in ("a", "b"):
        await found.delete_snapshot(worker, name)
    await driver.wish("s1", Wish.STOP)
    await driver.settled()
    assert len(worker.sandbox.record.layers) == 1
    assert worker.sandbox.record.plan is not None
    await driver.manager.start("s1", "")
    await driver.settled()
    await found.create_snapshot(worker, "c", disk_only=True)
    assert driver.world.objects() == held_objects(driver.world)
    await driver.close()


async def test_a_fork_of_a_disk_stays_in_its_workspace_and_keeps_what_it_stands_on() -> (
    None
):
    driver = await running()
    found, worker = operations(driver)
    await found.create_snapshot(worker, "a", disk_only=False)
    fork = {"from_snapshot": "s1/a"}
    with pytest.raises(NotFound, match="workspace"):
        await driver.manager.create(
            spec("s2", workspace="other", driver_config=fork), None
        )
    with pytest.raises(NotFound):
        await driver.manager.create(
            spec("s2", driver_config={"from_snapshot": "s1/b"}), None
        )
    with pytest.raises(InvalidRequest):
        await driver.manager.create(
            spec("s2", driver_config={"from_snapshot": "s1"}), None
        )
    await driver.manager.create(spec("s2", driver_config=fork), None)
    await driver.settled()
    forked = driver.record("s2")
    assert forked.layers[:1] == worker.sandbox.record.snapshots[0].layers
    assert not any(call.startswith("load test-") for call in driver.world.calls), (
        "cold: no memory"
    )
    await driver.manager.delete("s1", "")
    assert set(forked.layers) <= {
        f.removeprefix("file ") for f in driver.world.objects()
    }
    await driver.manager.delete("s2", "")
    assert driver.world.objects() == set()
    await driver.close()


# --- templates and the pool


async def test_the_second_of_a_shape_goes_on_from_a_template() -> None:
    driver = await with_template()
    world = driver.world
    assert not any("template" in name for name in world.taps.values()), (
        "nothing of it is left"
    )
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    record = driver.record("second")
    assert record.plan.template == driver.manager.templates.listed()[0].key
    assert record.plan.domain not in world.starts, "it did not boot"
    await driver.manager.stop("second", "")
    await driver.manager.start("second", "")
    await driver.settled()
    assert world.starts[record.plan.domain] == 1, (
        "from then on it boots from its own disk"
    )
    for name in ("first", "second"):
        await driver.manager.delete(name, "")
    assert {
        o for o in world.objects() if not o.startswith("file layers/template")
    } == set()
    await driver.close()


@pytest.mark.parametrize("call", ["load test-", "adopt"])
async def test_a_template_that_does_not_work_costs_a_boot_and_nothing_else(
    call: str,
) -> None:
    driver = await with_template()
    driver.world.fail = lambda made: made.startswith(call)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    assert driver.world.starts[driver.plan("second").domain] == 1
    await driver.close()


@pytest.mark.parametrize("what", ["memory", "layer", "base", "supervisor"])
async def test_a_template_that_was_written_to_is_given_up(what: str) -> None:
    driver = await with_template()
    (template,) = driver.manager.templates.listed()
    plan = template.manifest.plan
    path = {
        "memory": template.memory.path,
        "layer": template.layer,
        "base": plan.disk("root").backing[-1],
        "supervisor": plan.disk("supervisor").path,
    }[what]
    driver.world.written[path] = 1
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.plan("second").template is None
    await driver.close()


async def test_where_memory_cannot_be_sealed_every_machine_boots() -> None:
    driver = await with_template()
    driver.memory.can_seal = False
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.plan("second").template is None
    assert driver.phase("second") is Phase.RUNNING
    await driver.close()


async def test_workspaces_share_templates_only_where_the_operator_says_so() -> None:
    driver = await with_template(templates_scope="workspace")
    await driver.manager.create(spec("second", workspace="other"), None)
    await driver.settled()
    assert driver.plan("second").template is None
    await driver.close()


async def test_a_machine_that_waits_is_taken_over_whole() -> None:
    driver = await with_template(warm_pool=2)
    pool, (template,) = driver.manager.warm_pool, driver.manager.templates.listed()
    for _ in range(200):
        if pool.count(template.key) == 2:
            break
        await asyncio.sleep(0.01)
    waiting = {
        d
        for d, m in driver.world.marks.items()
        if "/warm-" in m and d in driver.world.domains
    }
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    record = driver.record("second")
    assert record.plan.domain in waiting
    assert driver.world.marks[record.plan.domain].endswith("/second")
    assert driver.world.taps[record.lease.tap].endswith("/second")
    assert record.plan.network.lease == record.lease
    world = driver.world
    await driver.kill()
    again = FakeDriver(world, settings=TEMPLATES)
    await again.manager.recover()
    await again.settled()
    assert not [
        m for d, m in world.marks.items() if "/warm-" in m and d in world.domains
    ]
    assert again.phase("second") is Phase.RUNNING
    await again.manager.delete("second", "")
    await again.manager.delete("first", "")
    assert {
        o for o in world.objects() if not o.startswith("file layers/template")
    } == set()
    await again.close()


async def test_the_sweep_at_start_leaves_the_new_pool_alone() -> None:
    driver = await with_template(warm_pool=2)
    await waiting(driver, 2)
    world = driver.world
    await driver.kill()
    again = FakeDriver(world, settings=dataclasses.replace(TEMPLATES, warm_pool=2))
    await again.manager.recover()
    await waiting(again, 2)
    layers = again.manager.warm_pool.layers()
    assert len(layers) == 2
    assert layers <= world.files, "no machine waits on a disk that was swept away"
    assert sum("/warm-" in world.marks[d] for d in world.domains) == 2
    await again.close()


@pytest.mark.parametrize("call", ["take over files", "mark tap", "write record"])
async def test_a_claim_that_comes_to_nothing_leaves_no_machine(call: str) -> None:
    driver = await with_template(warm_pool=1)
    await waiting(driver, 1)
    world = driver.world
    first = {d for d in world.domains if not world.marks[d].count("/warm-")}
    if call == "write record":  # cancelled instead, just after the claim
        await driver.manager.create(spec("second"), None)
        await driver.manager.delete("second", "")
    else:
        world.fail = lambda made: made.startswith(call)
        await driver.manager.create(spec("second"), None)
        await driver.settled()
        world.fail = lambda _: False
        assert driver.phase("second") is Phase.FAILED
        await driver.manager.delete("second", "")
    await driver.manager.close_background()
    assert set(world.domains) == first
    assert not driver.manager.warm_pool.layers()
    kept = {t.layer for t in driver.manager.templates.listed()}
    record = driver.record("first")
    assert {f for f in world.files if f.startswith("layers/")} == kept | {
        *record.layers
    }
    await driver.close()


@pytest.mark.parametrize(
    ("pool", "call"),
    [
        (1, "take over files"),
        (1, "mark tap"),
        (1, "load rules"),
        (0, "create overlay"),
        (0, "write launch files"),
        (0, "make tap"),
        (0, "load rules"),
    ],
)
async def test_after_a_fork_that_failed_a_start_works(pool: int, call: str) -> None:
    driver = await with_template(warm_pool=pool)
    await waiting(driver, pool)
    driver.world.fail = lambda made: made.startswith(call)
    await driver.manager.create(spec("second"), None)
    await driver.settled()
    assert driver.phase("second") is Phase.FAILED
    driver.world.fail = lambda _: False
    await driver.manager.start("second", "")
    await driver.settled()
    assert driver.phase("second") is Phase.RUNNING
    await driver.manager.delete("second", "")
    await driver.close()


async def test_a_memory_that_is_not_there_is_no_missing_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`ImageMissing` is said of a request that names no image, and of nothing else."""
    driver = FakeDriver(World())
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    reasons, verdict = [], RestoreTries.verdict

    def note(tries: RestoreTries, error: DriverError, **more: Any) -> Verdict:
        reasons.append(error.reason)
        return verdict(tries, error, **more)

    monkeypatch.setattr(RestoreTries, "verdict", note)
    await driver.manager.stop("s1", "")
    await driver.inside.update("s1", phase=Phase.SUSPENDED)
    await driver.manager.start("s1", "")
    await driver.settled()
    assert reasons == ["MemoryMissing"]
    assert driver.phase() is Phase.RUNNING, "it boots from its disk"
    await driver.close()
