"""An extension that is not loaded any more, or is another kind of extension by the same name: what it owes waits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from vmdriver.extension import Extension, LifecycleExtension


class ByHook(LifecycleExtension):
    name = "seat"

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    async def before_launch(self, context, plan, environment) -> None:
        await context.save({"seat": f"of {context.sandbox.id}"})
        self.taken.add(f"of {context.sandbox.id}")

    async def after_launch_failed(self, context, reason) -> None:
        self.taken.discard(context.saved.get("seat", ""))


class ByPhase(Extension):
    name = "seat"

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    async def before_start(self, context) -> None:
        await context.hold("seat", f"of {context.sandbox.id}")
        self.taken.add(f"of {context.sandbox.id}")

    async def undo(self, context, hold) -> None:
        self.taken.discard(hold.name)


@pytest.mark.parametrize("other", ["none", "the other kind"])
@pytest.mark.parametrize("kind", [ByHook, ByPhase])
async def test_what_it_owes_waits_for_it_and_is_not_given_to_a_namesake(
    kind: type[Any], other: str
) -> None:
    world, taken = World(), set[str]()

    async def driver_with(extensions: Sequence[Any]) -> FakeDriver:
        driver = FakeDriver(world, extensions=extensions)
        await driver.manager.recover()
        return driver

    first = await driver_with([kind(taken)])
    await first.manager.create(spec(), None)
    await first.settled()
    assert taken == {"of s1"}
    await first.kill()

    namesake = ByPhase if kind is ByHook else ByHook
    strangers = [] if other == "none" else [namesake(set())]
    second = await driver_with(strangers)
    deleting = asyncio.create_task(second.manager.delete("s1", ""))
    async with asyncio.timeout(5):
        while not second.owed():
            await asyncio.sleep(0.01)
    assert "extension 'seat' has" in second.owed()
    assert "but is not loaded" in second.owed()
    assert not world.domains, "its machine has gone all the same"
    assert taken == {"of s1"}
    deleting.cancel()
    await second.close()

    third = await driver_with([kind(taken)])
    async with asyncio.timeout(5):
        while third.sandboxes():
            await asyncio.sleep(0.01)
    assert taken == set()
    assert world.objects() == set()
    await third.close()


async def test_two_creates_at_once_share_no_draft_and_no_notes() -> None:
    world, taken = World(), set[str]()

    class Both(ByHook):
        async def configure_launch(self, context, draft) -> None:
            await asyncio.sleep(0)
            draft.set_environment("WHOSE", context.sandbox.id)

    driver = FakeDriver(world, extensions=[Both(taken), named_phase(taken)])
    await driver.manager.recover()
    names = [f"s{n}" for n in range(5)]
    await asyncio.gather(*(driver.manager.create(spec(n), None) for n in names))
    await driver.settled()
    for name in names:
        assert world.seeds[name][0]["WHOSE"] == name
    assert taken == {f"of {name}" for name in names} | {f"port {n}" for n in names}
    await asyncio.gather(*(driver.manager.delete(name, "") for name in names))
    assert taken == set()
    await driver.close()


def named_phase(taken: set[str]) -> Extension:
    class Port(ByPhase):
        name = "port"

        async def before_create(self, context, draft) -> None:
            await context.hold("port", f"port {context.sandbox.id}")
            await asyncio.sleep(0)
            self.taken.add(f"port {context.sandbox.id}")

        async def before_start(self, context) -> None:
            """Holds for the sandbox's life only."""

    return Port(taken)
