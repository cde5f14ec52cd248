"""Snapshots leave by the host's running time, whatever the wall clock says."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmdriver.lifecycle.memory.snapshot as snapshot_module
from tests.fakes.driver import FakeDriver
from tests.fakes.settings import SETTINGS
from tests.fakes.world import World
from tests.scenario.stage import operations, running
from vmdriver.host import facts
from vmdriver.model.checkpoint import SeenAge
from vmdriver.model.record import utc_now

DAY = 86400.0
KEEP_A_WEEK = dataclasses.replace(SETTINGS, snapshot_retention_days=7)


class Host:
    """Its clocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot, self.up_s, self.wall_days = 1, 1000.0, 0.0
        monkeypatch.setattr(facts, "boot_id", lambda: f"boot-{self.boot}")
        monkeypatch.setattr(facts, "uptime_s", lambda: self.up_s)
        monkeypatch.setattr(
            snapshot_module,
            "utc_now",
            lambda: utc_now() + timedelta(days=self.wall_days),
        )

    def restart(self) -> None:
        self.boot, self.up_s = self.boot + 1, 30.0


async def look(driver: FakeDriver) -> list[str]:
    await driver.manager.housekeeping.remove_expired()
    record = driver.record()
    return [entry.name for entry in record.snapshots]


@pytest.mark.parametrize("wall_days", [-30 * 365, -8, 8, 73 * 365])
async def test_a_wall_clock_that_jumps_removes_nothing(
    monkeypatch: pytest.MonkeyPatch, wall_days: float
) -> None:
    host = Host(monkeypatch)
    driver = await running(settings=KEEP_A_WEEK)
    found, worker = operations(driver)
    await found.create_snapshot(worker, "before", disk_only=True)
    entry = worker.sandbox.record.snapshots[0]
    # As if the clock had been wrong then and were right now: the same difference.
    then = entry.created_at - timedelta(days=wall_days)
    wrong = entry.model_copy(update={"created_at": then})
    await driver.inside.update("s1", snapshots=(wrong,))
    host.wall_days = wall_days
    await found.create_snapshot(worker, "after", disk_only=True)
    assert await look(driver) == ["before", "after"]
    host.up_s += 8 * DAY
    assert await look(driver) == []
    await driver.close()


async def test_age_is_kept_over_restarts_of_driver_and_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host, world = Host(monkeypatch), World()
    driver = await running(world, settings=KEEP_A_WEEK)
    found, worker = operations(driver)
    await found.create_snapshot(worker, "old", disk_only=True)
    host.up_s += 3 * DAY
    assert await look(driver) == ["old"]
    await found.create_snapshot(worker, "new", disk_only=True)
    await driver.kill()
    host.up_s += (
        1 * DAY
    )  # without a driver, and seen by nobody before the host restarts
    host.restart()
    driver = FakeDriver(world, settings=KEEP_A_WEEK)
    await driver.manager.recover()
    await driver.settled()
    host.up_s = 3.9 * DAY
    assert await look(driver) == ["old", "new"], "what nobody saw does not count"
    host.up_s = 4.1 * DAY
    assert await look(driver) == ["new"]
    saved = driver.record().snapshots[0].age
    host.up_s += 600
    await look(driver)
    assert driver.record().snapshots[0].age == saved, "not written at every look"
    await driver.close()


async def test_snapshots_of_an_earlier_release_begin_to_age_when_they_are_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Host(monkeypatch)
    host.up_s = 400 * DAY
    driver = await running(settings=KEEP_A_WEEK)
    found, worker = operations(driver)
    await found.create_snapshot(worker, "a", disk_only=True)
    entry = worker.sandbox.record.snapshots[0].model_copy(update={"age": SeenAge()})
    await driver.inside.update("s1", snapshots=(entry,))
    assert await look(driver) == ["a"]
    host.up_s += 6 * DAY
    assert await look(driver) == ["a"]
    host.up_s += 1.1 * DAY
    assert await look(driver) == []
    await driver.close()


@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(0, 1e6), st.booleans()),
        max_size=20,
    )
)
def test_an_age_never_exceeds_the_time_that_has_passed(
    steps: list[tuple[bool, float, bool]],
) -> None:
    age, boot, up_s, passed = SeenAge().at("0", 0), 0, 0.0, 0.0
    for restart, seconds, noted in steps:
        if restart:
            boot, up_s = boot + 1, 0.0
        up_s, passed = up_s + seconds, passed + seconds
        now = age.at(str(boot), up_s)
        assert age.seconds <= now.seconds <= passed + 1e-6
        age = now if noted else age
