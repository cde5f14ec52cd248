"""What a machine's cgroup says, file by file. Pure (the kernel's
Documentation/admin-guide/cgroup-v2.rst says what each file takes).
"""

from __future__ import annotations

from collections.abc import Mapping

from vmdriver.model.plan import LaunchPlan

NEEDED = frozenset({"memory", "pids"})
"""Controllers without which there is no use in a cgroup."""
WANTED = (*sorted(NEEDED), "cpu", "io")
_MIB = 2**20
_QEMU_MIB = 256
"""QEMU's own memory beside the guest's: 20 to 60 MiB were measured; page cache is given back."""
_TRANSLATED_MIB = 1024
"""What TCG keeps of translated code without a bound: at most 1 GiB (QEMU's accel/tcg/region.c)."""
_THREADS = 128
"""64 that wait for disks, the box's two processes, and a few."""
_PERIOD_US = 100_000
_OWN_MILLIS = 1000
"""CPU for QEMU's own threads beside the virtual CPUs."""


def files(
    plan: LaunchPlan, controllers: frozenset[str], device: str
) -> Mapping[str, str]:
    """What is written, in this order, to the cgroup of the plan's machine, of controllers that are
    there. `device`: the disk of its files as "8:0", or "" where it is not known.
    """
    memory_mib = plan.memory_mib + _QEMU_MIB
    if plan.accelerator == "tcg":
        memory_mib += plan.translated_mib or _TRANSLATED_MIB
    millis = plan.cpu_quota_millis or plan.vcpus * 1000 + _OWN_MILLIS
    found = {
        "memory.max": str(memory_mib * _MIB),
        "memory.oom.group": "1",
        "pids.max": str(plan.vcpus + _THREADS),
        "cpu.max": f"{millis * _PERIOD_US // 1000} {_PERIOD_US}",
    }
    if device and (plan.disk_iops, plan.disk_mib_s) != (None, None):
        found["io.max"] = _io(plan, device)
    return {n: text for n, text in found.items() if n.partition(".")[0] in controllers}


def _io(plan: LaunchPlan, device: str) -> str:
    """The second belt: QEMU throttles reads and writes together, before they get here."""
    iops = "max" if plan.disk_iops is None else str(plan.disk_iops)
    rate = "max" if plan.disk_mib_s is None else str(plan.disk_mib_s * _MIB)
    return f"{device} rbps={rate} wbps={rate} riops={iops} wiops={iops}"
