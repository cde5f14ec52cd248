"""Several creates at once on a state directory where nothing is yet."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from vmdriver.host.confined.user_namespace import UserNamespace
from vmdriver.host.threads import Threads
from vmdriver.model.phase import Phase
from vmdriver.storage.layout import Layout
from vmdriver.storage.programs.supervisors import SupervisorDisks


async def test_several_first_creates_at_once_all_come_up(tmp_path: Path) -> None:
    program = tmp_path / "supervisor"
    program.write_text("#!/bin/sh\n")
    layout, threads = Layout(tmp_path / "state"), Threads("supervisors", 4)
    layout.make()
    # The fake host, but for the supervisor's disk: that is made by the real programs.
    driver = FakeDriver(
        World(),
        settings=dataclasses.replace(SETTINGS, supervisor=program),
        adapters={
            "supervisor_disks": SupervisorDisks(
                layout, threads, numbers=UserNamespace()
            )
        },
    )
    await driver.manager.recover()
    names = [f"s{number}" for number in range(6)]
    await asyncio.gather(*(driver.manager.create(spec(n), None) for n in names))
    await driver.settled(timeout_s=30)
    assert {driver.phase(name) for name in names} == {Phase.RUNNING}
    plans = [driver.plan(name) for name in names]
    assert len({plan.disk("supervisor").path for plan in plans}) == 1
    await driver.close()
    threads.close()
