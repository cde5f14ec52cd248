"""Sequences of what a gateway, an operator and a workload do with one sandbox, and how each step is done."""

from __future__ import annotations

from tests.fakes.driver import FakeDriver, spec
from vmdriver.errors import AlreadyExists, DriverError, NotFound
from vmdriver.lifecycle.control.operator import Operations
from vmdriver.lifecycle.ports.host import GuestReport
from vmdriver.model.phase import Phase
from vmdriver.model.spec import SandboxSpec

SEQUENCES = {
    "create": ("create",),
    "create-stop": ("create", "stop"),
    "create-stop-start": ("create", "stop", "start"),
    "create-delete": ("create", "delete"),
    "create-stop-delete": ("create", "stop", "delete"),
    "create-exit-stop-start": ("create", "exit", "stop", "start"),
    "create-crash-delete": ("create", "crash", "delete"),
    "suspend": ("create", "tick", "suspend", "resume", "tick"),
    "suspend-twice": ("create", "suspend", "resume", "suspend", "resume", "tick"),
    "suspend-cold": ("create", "tick", "suspend", "cold", "tick"),
    "suspend-delete": ("create", "suspend", "delete"),
    "snapshot": ("create", "tick", "snapshot", "tick"),
    "snapshot-revert": ("create", "tick", "snapshot", "tick", "revert", "tick"),
    "snapshot-remove": ("create", "snapshot", "tick", "forget", "stop", "start"),
    "disk-snapshot": ("create", "disk-snapshot", "stop", "revert"),
    "snapshot-delete": ("create", "snapshot", "delete"),
    "suspended-revert": ("create", "snapshot", "suspend", "revert", "delete"),
}
SHORT = ("create", "create-stop-start", "create-crash-delete", "create-delete")
"""Names of those in which a machine gets, keeps and loses what it has of the host."""
OPERATIONS = {
    *("tick", "suspend", "resume", "cold"),
    *("snapshot", "disk-snapshot", "revert", "forget"),
}


async def perform(
    driver: FakeDriver, step: str, wanted: SandboxSpec | None = None
) -> None:
    """One intent (or one event of the guest), and wait for its end, as a gateway that retries would. `wanted`: what is
    created, if not the usual.
    """
    manager, world = driver.manager, driver.world
    try:
        if step == "create":
            await manager.create(wanted or spec(), None)
        elif step == "stop":
            await manager.stop("s1", "")
        elif step == "start":
            await manager.start("s1", "")
        elif step == "delete":
            await manager.delete("s1", "")
        elif step in OPERATIONS:
            await operate(driver, step)
        elif driver.phase() is Phase.RUNNING:
            domain = driver.plan().domain
            world.end_machine(
                domain, GuestReport("exited", 3) if step == "exit" else None
            )
            driver.hypervisor.hint(domain)
            await driver.in_phase("s1", Phase.FAILED)
    except DriverError as error:
        done_before = step == "create" and "exist" in str(error)
        if not done_before and not isinstance(error, AlreadyExists | NotFound):
            raise
    await driver.settled()


async def operate(driver: FakeDriver, step: str) -> None:
    """What an operator does, or (tick) what the workload does meanwhile."""
    operations = Operations(driver.manager)
    worker = operations.find("s1")
    down = driver.phase() in {Phase.STOPPED, Phase.SUSPENDED}
    if down and step in {"suspend", "snapshot", "disk-snapshot"}:
        # An operator who asks again after the crash finds it as a later step left it.
        await driver.manager.start("s1", "")
        await driver.settled()
    if step == "tick":
        if worker.sandbox.record.plan is not None and driver.phase() is Phase.RUNNING:
            driver.memory.tick(worker.sandbox.record.plan.domain)
    elif step == "suspend":
        await operations.suspend(worker)
    elif step in {"resume", "cold"}:
        await operations.resume(worker, cold=step == "cold")
    elif step == "revert":
        await operations.restore_snapshot(worker, "a")
    elif step == "forget":
        await operations.delete_snapshot(worker, "a")
    else:
        only = step == "disk-snapshot"
        await operations.create_snapshot(worker, "a", disk_only=only)
