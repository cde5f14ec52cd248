"""Copies of a running machine's disks, made by its QEMU: a mirror of each (QEMU's
docs/interop/live-block-operations) which is ended while nothing writes, so that it is of that
moment. A mirror that fails leaves the guest alone, unlike a backup job, whose guest waits for every
block that it is about to overwrite, and is told of what the target's disk refuses.

libvirt knows nothing of these jobs, and leaves alone what it does not know. They are told by their
names, so that the driver that comes after one which was killed can end them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from vmdriver.errors import HypervisorError, StorageError, TimedOut
from vmdriver.hypervisor import domain_reading, monitor, root_disk

_NAME = "vmdriver-copy-"
"""Of a job and of its target; with a role, at most 31 bytes."""
_POLL_S = 0.004
_END_S = 10.0
DEADLINE_S = _END_S + 5.0
_ENDED = "concluded"
_LONGEST_WORDS = 400
_MOST = 100
"""Jobs that an answer may tell of."""


def begin(machine: Any, targets: Mapping[str, str]) -> None:
    """See ports.MachineMemory.begin_copies."""
    drop(machine)
    text = machine.XMLDesc()
    devices = monitor.ask(machine, "query-block")
    for role, path in targets.items():
        with monitor.reading("query-block"):
            alias = domain_reading.read_alias(text, role)
            source = root_disk.find_top(devices, alias).node
        name = f"{_NAME}{role}"
        file = {"driver": "file", "filename": path, "discard": "unmap"}
        node = {"driver": "raw", "node-name": name, "file": file, "discard": "unmap"}
        monitor.ask(machine, "blockdev-add", **node, **{"detect-zeroes": "unmap"})
        job = {"job-id": name, "device": source, "target": name, "sync": "full"}
        monitor.ask(machine, "blockdev-mirror", **job, **{"auto-dismiss": False})


def _jobs(machine: Any) -> dict[str, Mapping[str, Any]]:
    """Ours, by name."""
    found = monitor.ask(machine, "query-jobs")
    with monitor.reading("query-jobs"):
        if len(found) > _MOST:
            raise HypervisorError("QEMU says that it has too many jobs")
        return {job["id"]: job for job in found if str(job["id"]).startswith(_NAME)}


def _check(name: str, job: Mapping[str, Any] | None) -> str:
    """Its status. StorageError where it has failed, or has ended by itself."""
    with monitor.reading("query-jobs"):
        status = str(job["status"]) if job is not None else "gone"
        why = str((job or {}).get("error", ""))[:_LONGEST_WORDS]
    if why or status in {"aborting", "gone", "null"}:
        raise StorageError(
            f"{name.removeprefix(_NAME)} cannot be copied: {why or status}",
            resolution="free space in the state directory",
        )
    return status


def left(machine: Any) -> int | None:
    """See ports.MachineMemory.uncopied_bytes."""
    total, begun = 0, True
    for name, job in _jobs(machine).items():
        status = _check(name, job)
        with monitor.reading("query-jobs"):
            done, all_of_it = int(job["current-progress"]), int(job["total-progress"])
        total += max(all_of_it - done, 0)
        begun &= done > 0 or status == "ready"
    return total if begun else None


def end(machine: Any, roles: Collection[str]) -> None:
    """See ports.MachineMemory.end_copies."""
    deadline = time.monotonic() + _END_S
    names = [f"{_NAME}{role}" for role in roles]
    _until(machine, names, "ready", deadline)
    for name in names:
        # Of one that is ready: it ends whole, with all that was written up to then.
        monitor.ask(machine, "block-job-cancel", device=name)
    _until(machine, names, _ENDED, deadline)
    for name in names:
        monitor.ask(machine, "job-dismiss", id=name)
        monitor.ask(machine, "blockdev-del", **{"node-name": name})


def _until(machine: Any, names: list[str], status: str, deadline: float) -> None:
    """TimedOut; StorageError."""
    while True:
        jobs = _jobs(machine)
        if all(_check(name, jobs.get(name)) == status for name in names):
            return
        _wait(deadline)


def _wait(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimedOut("QEMU does not end copying the machine's volumes")
    time.sleep(_POLL_S)


def drop(machine: Any) -> None:
    """See ports.MachineMemory.drop_copies."""
    if not machine.isActive():
        return
    deadline = time.monotonic() + _END_S
    while jobs := _jobs(machine):
        for name, job in jobs.items():
            with monitor.reading("query-jobs"):
                ended = job["status"] == _ENDED
            monitor.tried(machine, "job-dismiss" if ended else "job-cancel", id=name)
        _wait(deadline)
    nodes = monitor.ask(machine, "query-named-block-nodes", flat=True)
    with monitor.reading("query-named-block-nodes"):
        names = [str(node["node-name"]) for node in nodes]
    for name in [name for name in names if name.startswith(_NAME)][:_MOST]:
        monitor.tried(machine, "blockdev-del", **{"node-name": name})
