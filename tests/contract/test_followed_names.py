"""libvirt and QEMU are told what a disk consists of, and follow no name out of a layer's header."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.contract.canary import SECRET, watched
from tests.contract.conftest import qemu_owner
from tests.contract.test_hostile_layers import HOSTILE, Place
from tests.contract.test_hypervisor import MARK, machine_memory, plan, tap
from vmdriver.errors import StorageError
from vmdriver.host.threads import Threads
from vmdriver.hypervisor.abilities import Abilities
from vmdriver.hypervisor.machines import Machines
from vmdriver.hypervisor.memory.machine_memory import DomainMemory
from vmdriver.lifecycle.ports.memory import SavedMachine
from vmdriver.model.phase import DomainState
from vmdriver.model.plan import Disk, LaunchPlan, MachineUser
from vmdriver.storage.layers.disks import DiskStore
from vmdriver.storage.layout import Layout

__all__ = ["plan", "tap"]
MIB = 2**20


async def _lay(folder: Path, user: MachineUser | None) -> tuple[Place, Disk]:
    """A disk of two layers that the machine can write to, a third one that is to come, and a canary."""
    disks = DiskStore(Layout(folder), Threads("storage", 2), qemu_owner())
    base, canary = folder / "base", folder / "canary"
    own = folder / "layers" / "own"
    own.parent.mkdir()
    own.mkdir(mode=0o755)
    base.write_bytes(bytes(8 * MIB))
    canary.write_bytes(SECRET)
    for path in (base, canary):
        path.chmod(0o666)
    paths, made = [str(own / f"{n}.qcow2") for n in range(3)], []
    for number, path in enumerate(paths):
        backing = (*reversed(paths[:number]), str(base))
        disk = Disk(
            role="root", path=path, format="qcow2", read_only=False, backing=backing
        )
        await disks.create_overlay(disk, user)
        made.append(disk)
    return Place(Layout(folder), disks, canary, made[0], made[1]), made[2]


def _on(plan: LaunchPlan, root: Disk) -> LaunchPlan:
    rest = (disk for disk in plan.disks if disk.role != "root")
    return plan.model_copy(update={"disks": (root, *rest)})


async def test_the_names_in_headers_are_not_followed(
    hypervisor: Any, plan: LaunchPlan, folder: Path
) -> None:
    """By nobody, in a start and a switch to another layer, even where nobody had looked before."""
    if hypervisor.name != "QEMU":
        pytest.skip("only QEMU opens layers")
    place, third = await _lay(folder, plan.user)
    was = {Path(d.path): Path(d.path).read_bytes() for d in (place.below, place.disk)}
    for disk in (place.below, place.disk, third):
        here = Place(place.layout, place.disks, place.canary, place.below, disk)
        HOSTILE["on a file of the host"][0](here)
    memory = machine_memory(hypervisor)
    with watched(place.canary):
        await hypervisor.start(_on(plan, place.disk), MARK)
        await memory.switch_layer(plan.domain, third.path)
        assert await hypervisor.observe(plan.domain) is DomainState.RUNNING
        assert await memory.holds(third.path, place.disk.path)
        assert await place.disks.freeze_layer(place.disk.path, plan.user) > 0
        with pytest.raises(StorageError, match="can still be written to") as raised:
            await place.disks.freeze_layer(third.path, plan.user)
        assert raised.value.reason == "LayerHeld"
        await hypervisor.destroy(plan.domain)
    # A process opens libvirt's embedded driver some twenty times: the rest is one test with it.
    for what in ("external data", "on a file of the host", "a pipe"):
        for path, content in was.items():
            path.write_bytes(content)
        await _is_neither_started_nor_loaded(what, place, hypervisor, plan)


async def _is_neither_started_nor_loaded(
    what: str, place: Place, hypervisor: Any, plan: LaunchPlan
) -> None:
    check, connection = place.disks.check_layers, hypervisor.connection
    machines = Machines(
        connection, "test", Abilities(connection, qemu_owner()), check=check
    )
    threads = Threads("contract", 2)
    memory = DomainMemory(connection, threads, hypervisor.sealing, check=check)
    wanted = _on(plan, place.disk)
    await check(place.disk)
    HOSTILE[what][0](place)
    scratch = str(place.canary.with_name("scratch"))
    with watched(place.canary):
        with pytest.raises(StorageError, match=HOSTILE[what][1]) as raised:
            await machines.start(wanted, MARK)
        assert raised.value.reason in {"LayerRefused", "StorageFailed"}
        with pytest.raises(StorageError, match=HOSTILE[what][1]):
            await memory.load(wanted, MARK, SavedMachine(b"", "", os.devnull), scratch)
        assert await machines.observe(plan.domain) is DomainState.ABSENT
