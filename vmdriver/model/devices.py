"""PCI functions that machines are given: what is known of each, whether it can be given, and which
ones a sandbox gets. Pure.

A machine gets whole IOMMU groups, since the kernel isolates nothing smaller: what of a group it was
not to have goes along, driven by nobody (the kernel's Documentation/driver-api/vfio.rst).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from vmdriver.errors import DriverError, Exhausted, Refused
from vmdriver.model.spec import Frozen

VFIO = "vfio-pci"
"""The kernel's driver that hands a function to a program."""
SETTING = "passthrough_devices"
_ADDRESS = re.compile(
    r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE
)
_LAST_DOMAIN = 0xFFFF
"""The kernel has more (behind Intel's VMD, in Azure). QEMU takes 16 bits of a domain
(set_pci_host_devaddr of its hw/core/qdev-properties-system.c).
"""
_DISPLAY, _BRIDGE = 0x03, 0x0604
"""Base class of graphics; class of bridges between PCI buses (PCI Code and ID Assignment)."""
_MIB = 2**20


def pci_address(text: str) -> str:
    """As the kernel writes it. ValueError.

    >>> pci_address("3B:00.0"), pci_address("0000:af:1f.7")
    ('0000:3b:00.0', '0000:af:1f.7')
    """
    found = _ADDRESS.fullmatch(text.strip())
    if found is None:
        raise ValueError(f'{text!r} is no PCI address such as "0000:3b:00.0"')
    domain, place = int(found[1] or "0", 16), f"{found[2]}:{found[3]}.{found[4]}"
    if domain > _LAST_DOMAIN:
        raise ValueError(
            f"{text!r} is in PCI domain {domain:x}: QEMU takes none above {_LAST_DOMAIN:x}"
        )
    return f"{domain:04x}:{place}".lower()


class PassedFunction(Frozen):
    """One function of a group that a machine has, and all that giving it back needs to know."""

    address: str
    group: int
    """Number of its IOMMU group."""
    driver: str = ""
    """Which one it had before, and gets back. "": none."""
    override: str = ""
    """The driver_override that it had before. "": none."""
    given: bool = True
    """The guest sees it. Else it only goes along with its group."""
    bar_mib: int = 0
    """Of its memory that QEMU maps, rounded up."""


@dataclass(frozen=True)
class PciFunction:
    """What the host says of one."""

    address: str
    kind: int = 0
    """Class, subclass, programming interface: 0x030200."""
    vendor: int = 0
    device: int = 0
    group: int | None = None
    """None: no IOMMU stands before it."""
    driver: str = ""
    override: str = ""
    resettable: bool = False
    """The kernel can reset it without anything beside it."""
    neighbours: tuple[str, ...] = ()
    """Other functions on its bus, which a reset of that bus resets with it."""
    virtual_functions: int = 0
    """How many it has made of itself (SR-IOV)."""
    physical: str = ""
    """Whose virtual function it is. "": nobody's."""
    used_by: str = ""
    """What the host does with it; "": nothing that is known."""
    bar_bytes: int = 0

    @property
    def is_bridge(self) -> bool:
        """The kernel lets those stay with their driver while others of their group are passed."""
        return self.kind >> 8 == _BRIDGE

    @property
    def is_gpu(self) -> bool:
        """It has a display's base class, as GPUs without an output have too."""
        return self.kind >> 16 == _DISPLAY


@dataclass(frozen=True)
class DevicePicture:
    """What was asked of, and everything in the same groups."""

    iommu: bool = False
    """There are IOMMU groups."""
    vfio: bool = False
    """The driver that hands functions over is loaded."""
    functions: Mapping[str, PciFunction] = field(default_factory=dict)
    """By address."""

    def together_with(self, address: str) -> tuple[PciFunction, ...]:
        """The function and all of its group that is no bridge, by address; nothing for one that is
        not there.
        """
        found = self.functions.get(address)
        if found is None or found.group is None:
            return () if found is None else (found,)
        group = (f for f in self.functions.values() if f.group == found.group)
        members = (f for f in group if not f.is_bridge or f is found)
        return tuple(sorted(members, key=lambda f: f.address))


@dataclass(frozen=True)
class Obstacle:
    """Why a device cannot be given to a machine now."""

    reason: str
    message: str
    resolution: str

    def error(self, where: str) -> Refused:
        """For whoever asked for it there."""
        message = f"{where}: {self.message}"
        return Refused(message, reason=self.reason, resolution=self.resolution)


def obstacle(
    address: str, picture: DevicePicture, allowed: Collection[str]
) -> Obstacle | None:
    """What stands in the way of that device, whoever has it. None: nothing that is known."""
    found = picture.functions.get(address)
    if found is None:
        return Obstacle(
            "DeviceMissing",
            f"device {address} is not there",
            "see lspci -D; a device that was pulled out, or a virtual function that is not made "
            "any more, has no address",
        )
    return _of_the_host(found, picture) or _of_its_group(found, picture, allowed)


def _of_the_host(found: PciFunction, picture: DevicePicture) -> Obstacle | None:
    if not picture.iommu or found.group is None:
        return Obstacle(
            "IommuMissing",
            f"no IOMMU stands before device {found.address}",
            "switch it on in the firmware (VT-d, AMD-Vi, SMMU) and, with Intel, by the kernel's "
            "argument intel_iommu=on",
        )
    if not picture.vfio:
        return Obstacle(
            "VfioMissing",
            f"the kernel's driver {VFIO} is not loaded",
            f"modprobe {VFIO}, and name it in /etc/modules-load.d for the next boot",
        )
    if found.is_bridge:
        return Obstacle(
            "DeviceUnfit",
            f"device {found.address} is a bridge",
            "name what is behind it",
        )
    return None


def _of_its_group(
    found: PciFunction, picture: DevicePicture, allowed: Collection[str]
) -> Obstacle | None:
    members = picture.together_with(found.address)
    others = [f.address for f in members if f.address not in allowed]
    if others:
        return Obstacle(
            "DeviceGroupShared",
            f"device {found.address} is in IOMMU group {found.group} with "
            f"{', '.join(others)}, which may not be passed through",
            f"name all of the group in {SETTING}, if the host needs none of it, or use another "
            "slot",
        )
    for member in members:
        if in_use := _in_use(member):
            return in_use
    return _unclean(members)


def _in_use(member: PciFunction) -> Obstacle | None:
    """Taking it away would hurt the host."""
    if member.virtual_functions:
        return Obstacle(
            "DeviceInUse",
            f"device {member.address} has {member.virtual_functions} virtual functions",
            "pass those through, or write 0 to its sriov_numvfs",
        )
    if member.used_by:
        return Obstacle(
            "DeviceInUse",
            f"the host uses device {member.address}: {member.used_by}",
            "have the host let go of it, or name another one",
        )
    return None


def _unclean(members: Iterable[PciFunction]) -> Obstacle | None:
    """What one sandbox leaves in a device that cannot be reset, the next one finds."""
    together = {member.address for member in members}
    for member in members:
        if member.resettable or together.issuperset(member.neighbours):
            continue
        return Obstacle(
            "DeviceNotResettable",
            f"device {member.address} cannot be reset without others of its bus",
            "use one that can (there is a file reset in its folder of sysfs)",
        )
    return None


@dataclass(frozen=True)
class WantedDevices:
    """What a request asks for."""

    addresses: tuple[str, ...] = ()
    gpus: int = 0
    """Any, besides these."""

    def __bool__(self) -> bool:
        return bool(self.addresses or self.gpus)


def chosen(
    wanted: WantedDevices,
    picture: DevicePicture,
    allowed: tuple[str, ...],
    taken: Collection[str],
    waiting: int = 0,
    *,
    named: Collection[str] = (),
) -> tuple[PassedFunction, ...]:
    """Everything that the machine is to have, by address. `taken`: what others have; `waiting`:
    GPUs that others are to have besides, whichever; `named`: what others are to have and no other,
    so that it is the last to go to who wants any. Refused, Exhausted.
    """
    given: list[str] = []
    for address in wanted.addresses:
        found = obstacle(address, picture, allowed)
        if found is not None:
            raise found.error(f"template.driver_config.devices[{address!r}]")
        if not _addresses(picture, address).isdisjoint(taken):
            raise _taken(address)
        given.append(address)
    if wanted.gpus or waiting:
        free = _free_gpus(picture, allowed, set(taken) | set(given))
        left = max(0, len(free) - waiting)
        if left < wanted.gpus:
            raise _too_few(wanted.gpus, left, picture, allowed)
        if len(free) < waiting and gpus(picture, given):
            raise _taken(gpus(picture, given)[0])
        free.sort(key=lambda a: not _addresses(picture, a).isdisjoint(named))
        given += free[: wanted.gpus]
    return tuple(_passed(given, picture))


def _free_gpus(
    picture: DevicePicture, allowed: tuple[str, ...], not_these: Collection[str]
) -> list[str]:
    """In the operator's order."""
    return [
        address
        for address in gpus(picture, allowed)
        if address not in not_these
        and _addresses(picture, address).isdisjoint(not_these)
        and obstacle(address, picture, allowed) is None
    ]


def gpus(picture: DevicePicture, allowed: Iterable[str]) -> list[str]:
    """Those of them that are GPUs, whoever has them."""
    known = picture.functions
    return [a for a in allowed if a in known and known[a].is_gpu]


def _addresses(picture: DevicePicture, address: str) -> set[str]:
    return {member.address for member in picture.together_with(address)}


def _taken(address: str) -> Exhausted:
    return Exhausted(
        f"template.driver_config.devices[{address!r}]: another sandbox has it, or one of its "
        "IOMMU group",
        reason="DeviceTaken",
        resolution="stop or delete that one (vmdriver devices ls), or name another device",
    )


def _too_few(
    wanted: int, free: int, picture: DevicePicture, allowed: tuple[str, ...]
) -> DriverError:
    known = gpus(picture, allowed)
    hindered = [obstacle(address, picture, allowed) for address in known]
    why = next((f"; {found.message}" for found in hindered if found is not None), "")
    if hindered.count(None) < wanted:
        way_out = (
            f"ask for fewer, or have the operator mend that, or name more in {SETTING}"
        )
    else:
        way_out = "wait until another sandbox has ended"
    return Exhausted(
        f"spec.resource_requirements.gpu: {wanted} asked for, {free} of the {len(known)} that "
        f"{SETTING} names on this host are free{why}",
        reason="NoDeviceFree",
        resolution=f"{way_out} (vmdriver devices ls)",
    )


def _passed(given: list[str], picture: DevicePicture) -> Iterator[PassedFunction]:
    groups = {picture.functions[address].group for address in given}
    for address in sorted(picture.functions):
        found = picture.functions[address]
        if found.group is None or found.group not in groups or found.is_bridge:
            continue
        yield PassedFunction(
            address=address,
            group=found.group,
            driver=found.driver,
            override=found.override,
            given=address in given,
            bar_mib=-(-found.bar_bytes // _MIB),
        )
