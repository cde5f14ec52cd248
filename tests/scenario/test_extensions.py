"""Extensions: order, conflicts, activation, undo of what ran, saved state across a kill."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from vmdriver._proto import admin_pb2
from vmdriver.cli.main import main
from vmdriver.errors import ConfigError, Exhausted
from vmdriver.extension import LifecycleExtension, OnRequest
from vmdriver.model.phase import Phase
from vmdriver.service.admin import Admin
from vmdriver.service.servicer import Readiness

LOG: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def empty_log() -> None:
    LOG.clear()


class Recorder(LifecycleExtension):
    """Writes down what is called; `broken` names the hook that fails."""

    def __init__(
        self,
        name: str,
        broken: str = "",
        vcpus: int | None = None,
        saves: Mapping[str, Any] | None = None,
    ):
        self.name = name  # type: ignore[misc]
        self.broken, self.vcpus, self.saves = broken, vcpus, saves

    def note(self, hook: str, *more: Any) -> None:
        LOG.append((self.name, hook, *more))
        if self.broken == hook:
            raise RuntimeError("on purpose")

    async def configure_launch(self, context, draft) -> None:
        if self.saves:
            await context.save(self.saves)
        if self.vcpus:
            draft.set_vcpus(self.vcpus)
        self.note("configure_launch")

    async def before_launch(self, context, plan, environment) -> None:
        environment.set(f"FROM_{self.name.upper()}", plan.domain)
        self.note("before_launch", dict(context.saved))

    async def after_launch_failed(self, context, reason) -> None:
        self.note("after_launch_failed", reason.value, dict(context.saved))

    async def after_delete(self, context) -> None:
        self.note("after_delete", dict(context.saved))

    async def before_restore(self, context, kind) -> None:
        self.note("before_restore", kind.value)

    async def after_restore(self, context, kind) -> None:
        self.note("after_restore", kind.value)


def names(hook: str) -> list[str]:
    return [entry[0] for entry in LOG if entry[1] == hook]


async def started(
    *extensions: LifecycleExtension, world: World | None = None, **changes: Any
) -> FakeDriver:
    driver = FakeDriver(world or World(), extensions=extensions)
    await driver.manager.recover()
    if not driver.knows():
        await driver.manager.create(spec(**changes), None)
    await driver.settled()
    return driver


async def test_set_up_in_order_and_clean_up_in_reverse() -> None:
    driver = await started(Recorder("a"), Recorder("b"))
    assert names("configure_launch") == ["a", "b"]
    assert names("before_launch") == ["a", "b"]
    assert driver.world.seeds["s1"][0]["FROM_A"]
    await driver.manager.stop("s1", "")
    assert names("after_launch_failed") == ["b", "a"]
    assert {entry[2] for entry in LOG if entry[1] == "after_launch_failed"} == {
        "Stopped"
    }
    await driver.manager.start("s1", "")
    await driver.settled()
    assert names("before_restore") == ["a", "b"]
    assert names("after_restore") == ["a", "b"]
    await driver.manager.delete("s1", "")
    assert names("after_delete") == ["b", "a"]
    await driver.close()


async def test_only_what_ran_is_undone() -> None:
    driver = await started(
        Recorder("a"), Recorder("b", broken="configure_launch"), Recorder("c")
    )
    failure = driver.record().failure
    assert driver.phase() is Phase.FAILED
    assert "'b'" in failure.message
    assert names("after_launch_failed") == ["b", "a"]
    assert [e[2] for e in LOG if e[1] == "after_launch_failed"] == [
        "BeforeLaunchHookFailed"
    ] * 2
    await driver.manager.delete("s1", "")
    assert names("after_delete") == ["b", "a"]
    await driver.close()


@pytest.mark.parametrize(
    ("call", "reason"),
    [("write launch files", "GuestPrepareFailed"), ("start", "LauncherSpawnFailed")],
)
async def test_the_reason_says_which_part_failed(call: str, reason: str) -> None:
    world = World()
    world.fail = lambda made: made.startswith(call)
    driver = await started(Recorder("a"), world=world)
    assert [e[2] for e in LOG if e[1] == "after_launch_failed"] == [reason]
    world.fail = lambda made: False
    await driver.close()


async def test_a_machine_that_ends_by_itself_is_cleaned_up_with_its_reason() -> None:
    driver = await started(Recorder("a"))
    domain = next(iter(driver.world.domains))
    driver.world.end_machine(domain)
    driver.hypervisor.hint(domain)
    await driver.in_phase("s1", Phase.FAILED)
    assert [e[2] for e in LOG if e[1] == "after_launch_failed"] == ["ProcessExited"]
    await driver.close()


async def test_saved_state_reaches_the_undo_in_another_process() -> None:
    world = World()
    first = await started(Recorder("a", saves={"volume": 7}), world=world)
    await first.kill()
    second = await started(Recorder("a"), world=world)
    await asyncio.sleep(0.02)
    assert ("a", "before_restore", "adopted") in LOG
    assert ("a", "after_restore", "adopted") in LOG
    await second.manager.delete("s1", "")
    assert ("a", "after_launch_failed", "Stopped", {"volume": 7}) in LOG
    assert ("a", "after_delete", {"volume": 7}) in LOG
    await second.close()


async def test_two_that_set_one_value_differently_are_both_named() -> None:
    driver = await started(Recorder("a", vcpus=2), Recorder("b", vcpus=3))
    message = driver.failure().message
    assert "'a'" in message
    assert "'b'" in message
    assert "vcpus" in message
    await driver.close()


async def test_the_same_value_twice_is_fine() -> None:
    driver = await started(Recorder("a", vcpus=3), Recorder("b", vcpus=3))
    assert driver.plan().vcpus == 3
    await driver.close()


class OnLabel(Recorder):
    activation = OnRequest("audit")


@pytest.mark.parametrize(
    ("value", "active"),
    [
        ("enabled", True),
        (" YES ", True),
        ("on", True),
        ("1", True),
        ("no", False),
        ("", False),
        ("maybe", False),
    ],
)
async def test_activation_by_label(value: str, active: bool) -> None:
    driver = await started(OnLabel("a"), labels={"openshell.io/extension.audit": value})
    assert bool(LOG) is active
    await driver.manager.delete("s1", "")
    assert bool(names("after_delete")) is active
    await driver.close()


class Greedy(LifecycleExtension):
    name = "greedy"

    async def configure_launch(self, context, draft) -> None:
        draft.set_environment("OPENSHELL_SANDBOX_TOKEN", "x")


async def test_what_belongs_to_the_driver_cannot_be_set() -> None:
    driver = await started(Greedy())
    assert "belongs to the driver" in driver.failure().message
    await driver.close()


class Slow(LifecycleExtension):
    name = "slow"
    timeout_s = 0.05

    async def before_launch(self, context, plan, environment) -> None:
        await asyncio.sleep(10)


async def test_an_extension_that_takes_too_long_is_given_up() -> None:
    driver = await started(Slow())
    assert "took longer than 0.05 s" in driver.failure().message
    await driver.close()


class Full(LifecycleExtension):
    name = "full"

    async def before_launch(self, context, plan, environment) -> None:
        raise Exhausted("no more licences", reason="LicencesExhausted")


async def test_an_extensions_own_words_reach_the_user() -> None:
    driver = await started(Full())
    assert "LicencesExhausted: no more licences" in driver.failure().message
    await driver.close()


async def test_a_clean_up_that_fails_does_not_keep_the_machine() -> None:
    broken = Recorder("a", broken="after_launch_failed")
    driver = await started(broken)
    await driver.manager.stop("s1", "")
    assert driver.phase() is Phase.STOPPED
    assert not driver.world.domains
    assert not driver.world.taps
    assert "launch-hook:a" in driver.held(), "kept, to be tried again"
    broken.broken = ""
    await driver.manager.delete("s1", "")
    assert not driver.sandboxes()
    await driver.close()


async def test_a_sandbox_whose_extension_is_not_loaded_is_not_started() -> None:
    world = World()
    first = await started(Recorder("a"), world=world)
    await first.manager.stop("s1", "")
    await first.close()
    second = FakeDriver(world)
    await second.manager.recover()
    await second.manager.start("s1", "")
    await second.settled()
    assert "'a'" in second.failure().message
    await second.close()


def test_bad_and_doubled_names_are_refused_at_start() -> None:
    for extensions in (
        [Recorder("a/b")],
        [Recorder("..")],
        [Recorder("a"), Recorder("a")],
    ):
        with pytest.raises(ConfigError):
            FakeDriver(World(), extensions=extensions)


async def test_what_takes_part_can_be_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    driver = await started(Recorder("a"))
    readiness = Readiness()
    readiness.set(driver.manager)
    found = await Admin(
        readiness, driver.broadcaster, driver.pictures.now
    ).GetExtensionCapabilities(admin_pb2.GetExtensionCapabilitiesRequest(), None)
    (entry,) = found.extensions
    assert (entry.name, list(entry.sandboxes)) == ("a", ["s1"])
    assert "configure_launch" in entry.phases
    assert "before_fork" not in entry.phases, "Recorder does not define it"
    assert found.api == "phases+hooks"
    await driver.close()
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(found.driver_config_schema)
