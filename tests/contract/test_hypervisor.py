"""lifecycle.ports.Hypervisor: one suite for the fake, libvirt's test driver and QEMU."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import qemu_owner
from tests.fakes.world import World
from tests.unit.test_plan_rendering import plan as example_plan
from vmdriver.errors import HostError
from vmdriver.lifecycle.ports import Found
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import LaunchPlan

ROOT = Path(__file__).resolve().parents[2]
MARK = "vmdriver/test/s1"


@pytest.fixture
def plan(tmp_path: Path, hypervisor: Any) -> LaunchPlan:
    """A plan whose files and tap exist; on QEMU it starts a guest that has nothing to boot from but its kernel."""
    value = example_plan()
    if hypervisor.name == "fake":
        world: World = hypervisor._world
        world.taps[value.network.lease.tap] = world.tables[value.network.lease.tap] = (
            MARK
        )
        world.files |= {value.disk("root").path, value.disk("seed").path}
        return value
    if hypervisor.name != "QEMU":
        return value
    owner = qemu_owner()
    for directory in (tmp_path, *tmp_path.parents):
        if directory.is_relative_to("/tmp") and directory != Path("/tmp"):
            directory.chmod(0o755)
    disks = []
    for disk in value.disks:
        path = tmp_path / f"{disk.role}.img"
        path.write_bytes(b"\0" * 65536)
        os.chown(path, owner.uid, owner.gid)
        disks.append(
            disk.model_copy(
                update={"path": str(path), "format": "raw", "backing": None}
            )
        )
    console = tmp_path / "console.log"
    console.touch()
    os.chown(console, owner.uid, owner.gid)
    boot = ROOT / ".work" / "boot" / "current"
    return value.model_copy(
        update={
            "disks": tuple(disks),
            "console": str(console),
            "kernel": str(boot.resolve() / "kernel"),
            "initramfs": str(boot.resolve() / "initramfs"),
            "memory_mib": 256,
        }
    )


@pytest.fixture(autouse=True)
def tap(plan: LaunchPlan, hypervisor: Any) -> Any:
    name = plan.network.lease.tap
    if hypervisor.name == "QEMU":
        subprocess.run(["ip", "tuntap", "add", name, "mode", "tap"], check=True)
    yield
    if hypervisor.name == "QEMU":
        subprocess.run(["ip", "link", "del", name], check=True)


async def test_what_is_not_there_is_absent_and_can_be_destroyed(
    hypervisor: Any,
) -> None:
    assert await hypervisor.observe("test-nobody") is DomainState.ABSENT
    await hypervisor.destroy("test-nobody")
    assert await hypervisor.marked() == []


async def test_a_machine_starts_is_found_and_is_destroyed_for_good(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    await hypervisor.start(plan, MARK)
    assert await hypervisor.observe(plan.domain) is DomainState.RUNNING
    assert await hypervisor.marked() == [Found("domain", plan.domain, "s1")]
    for _ in range(2):
        await hypervisor.destroy(plan.domain)
    assert await hypervisor.observe(plan.domain) is DomainState.ABSENT
    await hypervisor.start(plan, MARK)
    await hypervisor.destroy(plan.domain)


async def test_two_machines_on_one_disk_are_refused(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    await hypervisor.start(plan, MARK)
    with pytest.raises(HostError):
        await hypervisor.start(plan, MARK)
    assert await hypervisor.observe(plan.domain) is DomainState.RUNNING
    await hypervisor.destroy(plan.domain)


async def test_changes_are_hinted_at_in_the_loops_thread(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    if hypervisor.name == "fake":
        pytest.skip("the fake hints only when a test says so")
    hints: list[str] = []
    loop, came = asyncio.get_running_loop(), asyncio.Event()

    def hint(name: str) -> None:
        assert asyncio.get_running_loop() is loop
        hints.append(name)
        came.set()

    hypervisor.on_change(hint)
    await hypervisor.start(plan, MARK)
    await asyncio.wait_for(came.wait(), 5)
    assert set(hints) == {plan.domain}
    await hypervisor.destroy(plan.domain)


async def test_a_flush_without_an_agent_fails_in_time(
    hypervisor: Any, plan: LaunchPlan
) -> None:
    if hypervisor.name == "fake":
        pytest.skip("the fake's guest always answers")
    await hypervisor.start(plan, MARK)
    async with asyncio.timeout(5):
        assert not await hypervisor.flush(plan.domain, 1.0)
    await hypervisor.destroy(plan.domain)
