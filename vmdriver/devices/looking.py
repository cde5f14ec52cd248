"""What sysfs says of PCI functions (the kernel's Documentation/ABI/testing/sysfs-bus-pci)."""

from __future__ import annotations

from vmdriver.devices.files import Files
from vmdriver.devices.in_use import used_by
from vmdriver.model.devices import VFIO, DevicePicture, PciFunction

DEVICES = "sys/bus/pci/devices"
DRIVERS = "sys/bus/pci/drivers"
GROUPS = "sys/kernel/iommu_groups"
_NO_OVERRIDE = "(null)"
_BARS = 6
_MEMORY = 0x200
"""IORESOURCE_MEM of the kernel's include/linux/ioport.h."""
_UNPROTECTED = "vfio-noiommu"
"""Name of a group that the kernel has made up: no IOMMU is behind it."""


def look(files: Files, addresses: tuple[str, ...]) -> DevicePicture:
    """Those of them that are there, and all of their groups."""
    known: dict[str, PciFunction] = {}
    everything = files.names(DEVICES)
    for address in addresses:
        if address in known or address not in everything:
            continue
        found = function(files, address, everything)
        known[address] = found
        if found.group is None:
            continue
        for member in files.names(f"{GROUPS}/{found.group}/devices"):
            if member not in known and member in everything:
                known[member] = function(files, member, everything)
    return DevicePicture(
        iommu=bool(files.names(GROUPS)),
        vfio=files.there(f"{DRIVERS}/{VFIO}") and files.there("dev/vfio/vfio"),
        functions=known,
    )


def function(files: Files, address: str, everything: list[str]) -> PciFunction:
    """One that is there. `everything`: addresses of all."""
    device = f"{DEVICES}/{address}"
    driver = driver_of(files, address)
    bus = address.rpartition(":")[0]
    others = (a for a in everything if a != address and a.rpartition(":")[0] == bus)
    return PciFunction(
        address=address,
        kind=_number(files.read(f"{device}/class")),
        vendor=_number(files.read(f"{device}/vendor")),
        device=_number(files.read(f"{device}/device")),
        group=_group(files, device),
        driver=driver,
        override=override_of(files, address),
        resettable=files.there(f"{device}/reset"),
        neighbours=tuple(others),
        virtual_functions=_number(files.read(f"{device}/sriov_numvfs")),
        physical=files.last(f"{device}/physfn"),
        used_by=used_by(files, device) if driver not in {"", VFIO} else "",
        bar_bytes=_bar_bytes(files.read(f"{device}/resource")),
    )


def driver_of(files: Files, address: str) -> str:
    """Who drives it; "" for nobody."""
    return files.last(f"{DEVICES}/{address}/driver")


def override_of(files: Files, address: str) -> str:
    """Which driver alone may drive it; "" for any that fits."""
    text = files.read(f"{DEVICES}/{address}/driver_override")
    return "" if text == _NO_OVERRIDE else text


def _group(files: Files, device: str) -> int | None:
    text = files.last(f"{device}/iommu_group")
    if not text.isdecimal() or files.read(f"{GROUPS}/{text}/name") == _UNPROTECTED:
        return None
    return int(text)


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _bar_bytes(text: str) -> int:
    """Of the memory behind its base addresses. A line is first, last, flags."""
    total = 0
    for line in text.splitlines()[:_BARS]:
        words = [_number(word) for word in line.split()]
        if len(words) == 3 and words[2] & _MEMORY and words[1] > words[0]:
            total += words[1] - words[0] + 1
    return total
