"""What extensions ask for is bounded, counted, and their names are in the refusal."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import TEMPLATES
from vmdriver.errors import Exhausted, Refused
from vmdriver.extension import Extension, LifecycleExtension
from vmdriver.lifecycle.ports.settings import Settings
from vmdriver.model.phase import Phase
from vmdriver.model.record import Failure


class Greedy(LifecycleExtension):
    """Asks for whatever a test wants, in either hook."""

    name = "greedy"

    def __init__(
        self,
        memory_mib: int = 0,
        vcpus: int = 0,
        configure: dict[str, str] | None = None,
        launch: dict[str, str] | None = None,
    ) -> None:
        self.memory_mib, self.vcpus = memory_mib, vcpus
        self.environment = (configure or {}, launch or {})

    async def configure_launch(self, context: Any, draft: Any) -> None:
        if self.memory_mib:
            draft.set_memory_mib(self.memory_mib)
        if self.vcpus:
            draft.set_vcpus(self.vcpus)
        for name, value in self.environment[0].items():
            draft.set_environment(name, value)

    async def before_launch(self, context: Any, plan: Any, environment: Any) -> None:
        for name, value in self.environment[1].items():
            environment.set(name, value)


async def with_greedy(greedy: Greedy, settings: Settings = SETTINGS) -> FakeDriver:
    driver = FakeDriver(World(), settings=settings, extensions=[greedy])
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    return driver


def failure_of(driver: FakeDriver, sandbox_id: str = "s1") -> Failure:
    found = driver.record(sandbox_id).failure
    assert found is not None
    return found


MANY = {f"V{n}": "x" * 100_000 for n in range(30)}


@pytest.mark.parametrize(
    ("greedy", "words"),
    [
        (Greedy(memory_mib=95), "at least 96"),
        (Greedy(memory_mib=4097), "maximum 4096"),
        (Greedy(vcpus=65), "maximum 64"),
        (Greedy(configure={"BIG": "x" * 131072}), "131072 at most"),
        (Greedy(launch={"BIG": "x" * 131072}), "131072 at most"),
        (Greedy(configure=MANY), "environment is 3"),
        (Greedy(launch=MANY), "environment is 3"),
    ],
)
async def test_what_cannot_be_had_refuses_the_launch_and_names_the_extension(
    greedy: Greedy, words: str
) -> None:
    settings = dataclasses.replace(SETTINGS, max_memory_mib=4096)
    driver = await with_greedy(greedy, settings)
    assert driver.phase() is Phase.FAILED
    assert "greedy" in failure_of(driver).message
    assert words in failure_of(driver).message
    assert not driver.world.domains
    await driver.close()


class Rival(Greedy):
    name = "rival"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Greedy(configure={"X": "1"}), Rival(configure={"X": "2"})),
        (Greedy(configure={"X": "1"}), Rival(launch={"X": "2"})),
        (Greedy(launch={"X": "1"}), Rival(launch={"X": "2"})),
    ],
)
async def test_two_that_set_a_variable_differently_are_both_named_whichever_hook_it_was(
    first: Greedy, second: Greedy
) -> None:
    driver = FakeDriver(World(), extensions=[first, second])
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert driver.phase() is Phase.FAILED
    assert (
        "'greedy' and 'rival' both set env[X], differently" in driver.failure().message
    )
    assert not driver.world.domains
    await driver.close()


async def test_the_same_variable_twice_is_fine_and_its_own_an_extension_may_change() -> (
    None
):
    first = Greedy(configure={"X": "1", "Y": "1"}, launch={"Y": "2"})
    driver = FakeDriver(World(), extensions=[first, Rival(launch={"X": "1"})])
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    assert driver.phase() is Phase.RUNNING
    assert driver.plan().environment_by == {"X": "greedy", "Y": "greedy"}
    await driver.close()


async def test_96_mib_are_enough_to_ask_for() -> None:
    driver = await with_greedy(Greedy(memory_mib=96))
    plan = driver.plan()
    assert driver.phase() is Phase.RUNNING
    assert plan is not None
    assert plan.memory_mib == 96
    await driver.close()


async def test_memory_that_an_extension_asks_for_counts_for_the_host() -> None:
    settings = dataclasses.replace(SETTINGS, max_committed_memory_mib=5000)
    driver = await with_greedy(Greedy(memory_mib=3000), settings)
    with pytest.raises(Exhausted, match="3000 MiB of 5000 MiB are committed"):
        await driver.manager.create(spec("s2"), None)
    await driver.manager.stop("s1", "")
    await driver.manager.create(spec("s2"), None)
    await driver.settled()
    with pytest.raises(Exhausted, match="3000 MiB do not fit"):
        await driver.manager.start("s1", "")
    await driver.close()


async def test_launches_at_one_time_do_not_take_the_same_memory() -> None:
    """Each was admitted with 2048 MiB; what the extension adds fits only once."""
    settings = dataclasses.replace(SETTINGS, max_committed_memory_mib=5100)
    driver = FakeDriver(World(), settings=settings, extensions=[Greedy(3000)])
    await driver.manager.recover()
    await asyncio.gather(
        *(driver.manager.create(spec(name), None) for name in ("s1", "s2"))
    )
    await driver.settled()
    phases = {name: driver.phase(name) for name in ("s1", "s2")}
    assert sorted(phases.values()) == [Phase.FAILED, Phase.RUNNING]
    loser = next(name for name, phase in phases.items() if phase is Phase.FAILED)
    assert "'greedy'" in failure_of(driver, loser).message
    assert "do not fit" in failure_of(driver, loser).message
    await driver.close()


class GreedyInPhases(Extension):
    """The same by way of phases: it is known at the create."""

    name = "greedy"

    def __init__(self, memory_mib: int) -> None:
        self.memory_mib = memory_mib

    async def prepare_plan(self, context: Any, draft: Any) -> None:
        draft.set("plan.memory_mib", self.memory_mib)


@pytest.mark.parametrize(
    ("memory_mib", "error"), [(4097, Refused), (95, Refused), (3000, Exhausted)]
)
async def test_a_phase_that_asks_for_too_much_refuses_the_create(
    memory_mib: int, error: type[Exception]
) -> None:
    settings = dataclasses.replace(
        SETTINGS, max_memory_mib=4096, max_committed_memory_mib=2500
    )
    driver = FakeDriver(
        World(), settings=settings, extensions=[GreedyInPhases(memory_mib)]
    )
    await driver.manager.recover()
    with pytest.raises(error):
        await driver.manager.create(spec(), None)
    assert not driver.sandboxes()
    await driver.close()


@pytest.mark.parametrize(
    "broken",
    [
        lambda call: call.startswith("begin checkpoint"),
        lambda call: call.startswith("create overlay layers/template-"),
        lambda call: (
            call.startswith("remove layers/template-") or call == "write barrier files"
        ),
    ],
)
async def test_a_template_that_cannot_be_built_gives_back_what_was_set_aside(
    broken: Callable[[str], bool],
) -> None:
    driver = FakeDriver(World(), settings=TEMPLATES)
    driver.world.fail = broken
    await template_tried(driver)
    assert driver.memory_store.reserved == {}
    assert driver.inside.leases() == ["s1"]
    await driver.close()


async def test_a_template_without_an_address_gives_its_room_back() -> None:
    """The pool has one block, which the sandbox has."""
    settings = dataclasses.replace(TEMPLATES, address_pool="10.0.128.0/30")
    driver = FakeDriver(World(), settings=settings)
    await template_tried(driver)
    assert driver.memory_store.reserved == {}
    await driver.close()


async def template_tried(driver: FakeDriver) -> None:
    await driver.manager.recover()
    await driver.manager.create(spec(), None)
    await driver.settled()
    async with asyncio.timeout(5):
        while not driver.inside.failed_builds():
            await asyncio.sleep(0.01)
