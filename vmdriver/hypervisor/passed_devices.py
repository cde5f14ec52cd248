"""The host's devices in a machine: what its XML, its box and its limits say of them. Pure.

libvirt does nothing to such a device (`managed="no"`): it looks that vfio-pci drives it, puts it
behind a PCIe root port of its own, as the board q35 has them (its docs/formatdomain.rst), and lets
QEMU lock the guest's memory and one GiB more, since a device reads and writes all of it
(qemuDomainGetMemLockLimitBytes of its src/qemu/qemu_domain.c).
"""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from vmdriver.model.devices import VFIO
from vmdriver.model.plan import LaunchPlan

CONTAINER = "/dev/vfio/vfio"
"""Everybody's: it is nothing without a group."""
_DEVICES = "/sys/bus/pci/devices"
_GROUPS = "../../../../kernel/iommu_groups"
_HOLE_MIB = 16 * 1024
"""Half of what q35 leaves for 64-bit memory of devices by itself (QEMU's hw/pci-host/q35.c)."""
_MORE_LOCKED_MIB = 1024


def render(devices: Xml.Element, plan: LaunchPlan) -> None:
    """What of the domain's <devices> is theirs."""
    bars = bar_mib(plan)
    if bars > _HOLE_MIB:
        root = Xml.SubElement(
            devices,
            "controller",
            {"type": "pci", "index": "0", "model": "pcie-root"},
        )
        hole = Xml.SubElement(root, "pcihole64", {"unit": "MiB"})
        hole.text = str(_power_above(2 * bars))
    for address in plan.devices:
        domain, bus, rest = address.split(":")
        slot, _, function = rest.partition(".")
        kind = {"mode": "subsystem", "type": "pci", "managed": "no"}
        element = Xml.SubElement(devices, "hostdev", kind)
        Xml.SubElement(element, "driver", {"name": VFIO.partition("-")[0]})
        source = Xml.SubElement(element, "source")
        place = {"domain": domain, "bus": bus, "slot": slot, "function": function}
        Xml.SubElement(
            source, "address", {name: f"0x{value}" for name, value in place.items()}
        )


def bar_mib(plan: LaunchPlan) -> int:
    """Of the devices' own memory, which QEMU maps."""
    return sum(f.bar_mib for f in plan.passed if f.given)


def nodes(plan: LaunchPlan) -> tuple[str, ...]:
    """What QEMU opens of them."""
    groups = sorted({f.group for f in plan.passed})
    return (CONTAINER, *(f"/dev/vfio/{group}" for group in groups)) if groups else ()


def links(plan: LaunchPlan) -> tuple[tuple[str, str], ...]:
    """All that QEMU reads of them in sysfs (its hw/vfio/container.c and pci.c): the folder is
    there, and its link `iommu_group` ends with a number. Where each leads, and where it is.
    """
    return tuple(
        (f"{_GROUPS}/{f.group}", f"{_DEVICES}/{f.address}/iommu_group")
        for f in plan.passed
        if f.given
    )


def locked_mib(plan: LaunchPlan) -> int | None:
    """Most memory that its QEMU may lock. None: what others may."""
    return plan.memory_mib + _MORE_LOCKED_MIB if plan.passed else None


def _power_above(number: int) -> int:
    return 1 << (number - 1).bit_length()
