"""QEMU's own limits of a machine's disks: in its XML, and of one that runs already; and of that one
libvirt's limit of its CPUs.

All disks are in one group, so that the limit is the machine's. Of libvirt 9.0: a group's limits are
changed for all its members at once; to put a disk into one, or to take it out, each is named.
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as Xml

import libvirt

from vmdriver.model.plan import LaunchPlan

_GROUP = "machine"
_CPU_PERIOD_US = 100_000
_FLAGS = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG


def _parameters(plan: LaunchPlan) -> dict[str, int]:
    """By libvirt's names, those that are set."""
    limits = {
        "total_bytes_sec": (plan.disk_mib_s or 0) * 2**20,
        "total_iops_sec": plan.disk_iops or 0,
    }
    return {name: value for name, value in limits.items() if value}


def render(disk: Xml.Element, plan: LaunchPlan) -> None:
    """Put the plan's limits into a disk's element, in place of what is there."""
    for tune in disk.findall("iotune"):
        disk.remove(tune)
    parameters = _parameters(plan)
    if parameters:
        tune = Xml.SubElement(disk, "iotune")
        for name, value in parameters.items():
            Xml.SubElement(tune, name).text = str(value)
        Xml.SubElement(tune, "group_name").text = _GROUP


def apply(machine: Any, plan: LaunchPlan) -> None:
    """Have a machine that is there limited as the plan says. libvirtError."""
    wanted = _parameters(plan)
    unset = {"total_bytes_sec": 0, "total_iops_sec": 0}
    for device in _devices(machine):
        present = machine.blockIoTune(device, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        if {name: present[name] for name in unset} != unset | wanted:
            group = {"group_name": _GROUP} if wanted else {}
            machine.setBlockIoTune(device, unset | wanted | group, _FLAGS)
    if plan.cpu_quota_millis is not None and "cgroup" not in plan.wall:
        machine.setSchedulerParametersFlags(
            cpu_quota(plan.cpu_quota_millis), libvirt.VIR_DOMAIN_AFFECT_LIVE
        )


def cpu_quota(millis: int) -> dict[str, int]:
    """By libvirt's names, as its <cputune> has them too."""
    return {
        "global_period": _CPU_PERIOD_US,
        "global_quota": millis * _CPU_PERIOD_US // 1000,
    }


def _devices(machine: Any) -> list[str]:
    root = Xml.fromstring(machine.XMLDesc())  # noqa: S314 - libvirt's own output
    return [t.get("dev", "") for t in root.findall("devices/disk/target")]
