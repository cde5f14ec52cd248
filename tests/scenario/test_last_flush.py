"""What guests have written is on their disks before a host that is shut down ends their machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.driver import FakeDriver, spec
from tests.fakes.world import World
from vmdriver.host import service_manager


async def several(*names: str) -> FakeDriver:
    driver = FakeDriver(World())
    await driver.manager.recover()
    for name in names:
        await driver.manager.create(spec(name), None)
    await driver.settled()
    return driver


async def test_whoever_runs_flushes_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = await several("s1", "s2", "stopped")
    await driver.manager.stop("stopped", "")
    await driver.settled()
    driver.world.flushed.clear()
    with caplog.at_level("INFO"):
        await driver.core.last_flush.run(5)
    running = {driver.plan(name).domain for name in ("s1", "s2")}
    assert set(driver.world.flushed) == running
    assert len(driver.world.domains.keys() & running) == 2
    assert "2 guests have flushed" in caplog.text
    await driver.close()


async def test_one_that_does_not_answer_keeps_nobody_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = await several("s1", "s2")
    deaf, heard = (driver.plan(name).domain for name in ("s1", "s2"))
    driver.world.fail = lambda call: call == f"flush {deaf}"
    await driver.core.last_flush.run(5)
    assert driver.world.flushed == [heard]
    assert "these have not: s1" in caplog.text
    driver.world.fail = lambda _call: False
    await driver.close()


@pytest.mark.parametrize(
    ("says", "ends"), [("stopping", True), ("running", False), ("", False)]
)
async def test_systemd_is_asked_whether_the_host_is_shut_down(
    says: str, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f"#!/bin/sh\necho '{says}'\n[ '{says}' ]\n")
    systemctl.chmod(0o755)
    monkeypatch.setattr(service_manager, "ASKED", (str(systemctl), "show"))
    monkeypatch.setattr(service_manager, "SYSTEMD", tmp_path)
    assert await service_manager.is_host_ending() is ends
    monkeypatch.setattr(service_manager, "SYSTEMD", tmp_path / "none")
    assert not await service_manager.is_host_ending()
