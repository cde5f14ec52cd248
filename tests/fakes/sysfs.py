"""A folder that behaves like the kernel's files about PCI functions: what may be written where, what it changes, and
what comes of it half way. The kernel's drivers/pci/pci-driver.c, drivers/base/bus.c and drivers/vfio/pci are the model.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from vmdriver.devices.files import Files
from vmdriver.model.devices import VFIO

_DEVICES, _DRIVERS = "sys/bus/pci/devices", "sys/bus/pci/drivers"
_WRITTEN = re.compile(
    rf"{_DEVICES}/(?P<device>[^/]+)/(?P<file>driver_override|reset|driver/unbind)"
)
_BIND = re.compile(rf"{_DRIVERS}/(?P<driver>[^/]+)/bind")


class FakeSysfs(Files):
    """`root`: an empty folder. Owners of nodes are noted, not set: tests need not be root."""

    def __init__(self, root: Path, *, iommu: bool = True, vfio: bool = True) -> None:
        super().__init__(root)
        for folder in (
            _DEVICES,
            _DRIVERS,
            "sys/class/block",
            "sys/class/net",
            "dev/vfio",
            "proc/self",
            "proc/net",
        ):
            (root / folder).mkdir(parents=True)
        if iommu:
            (root / "sys/kernel/iommu_groups").mkdir(parents=True)
        if vfio:
            self.load(VFIO)
            (root / "dev/vfio/vfio").touch()
        self.refused: dict[str, int] = {}
        """A file's name -> what writing to it fails with."""
        self.before: dict[str, Callable[[], object]] = {}
        """A file's name -> what happens just before it is written to, once."""
        self.elsewhere: set[str] = set()
        """Nodes that another process has open."""
        self.held_disks: set[str] = set()
        """Block devices that the system uses."""
        self.owners: dict[str, tuple[int, int]] = {}
        self.writes: list[str] = []

    def load(self, driver: str) -> None:
        (self.root / _DRIVERS / driver).mkdir(exist_ok=True)

    def add(
        self,
        address: str,
        kind: int = 0x030200,
        *,
        group: int | None = 7,
        driver: str = "nvidia",
        resettable: bool = True,
        bars_mib: int = 16,
        **files: str,
    ) -> Path:
        """A function that is there; `files`: more of its own. Its real folder."""
        place = self.root / "sys/devices/pci0000:00" / address
        place.mkdir(parents=True)
        (self.root / _DEVICES / address).symlink_to(place)
        size = bars_mib * 2**20
        resource = (
            f"0x{size:x} 0x{2 * size - 1:x} 0x140204\n" if bars_mib else "0x0 0x0 0x0\n"
        )
        texts = {
            "class": f"0x{kind:06x}\n",
            "vendor": "0x10de\n",
            "device": "0x20b0\n",
            "driver_override": "(null)\n",
            "resource": resource
            + "0x000000000000e000 0x000000000000e07f 0x0000000000040101\n",
            **({"reset": ""} if resettable else {}),
            **files,
        }
        for name, text in texts.items():
            (place / name).write_text(text)
        if group is not None:
            members = self.root / f"sys/kernel/iommu_groups/{group}/devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / address).symlink_to(place)
            (place / "iommu_group").symlink_to(members.parent)
        if driver:
            self.load(driver)
            self._attach(address, driver)
        return place

    def vanish(self, address: str) -> None:
        """It is pulled out."""
        self._detach(address)
        shutil.rmtree(self.place(f"{_DEVICES}/{address}"))
        (self.root / _DEVICES / address).unlink()
        for link in self.root.glob(f"sys/kernel/iommu_groups/*/devices/{address}"):
            link.unlink()

    def drivers(self) -> dict[str, str]:
        return {a: self.last(f"{_DEVICES}/{a}/driver") for a in self.names(_DEVICES)}

    def overrides(self) -> dict[str, str]:
        return {
            a: self.read(f"{_DEVICES}/{a}/driver_override")
            for a in self.names(_DEVICES)
        }

    # --- what the kernel does

    def write(self, name: str, text: str) -> None:
        if before := self.before.pop(name, None):
            before()
        self.writes.append(f"{name} {text.strip()}")
        if (
            not self.there(name)
            and not _BIND.fullmatch(name)
            and not name.endswith("/driver/unbind")
        ):
            raise _error(errno.ENOENT, name)
        if name in self.refused:
            raise _error(self.refused[name], name)
        if bind := _BIND.fullmatch(name):
            self._bind(bind["driver"], text.strip(), name)
        elif own := _WRITTEN.fullmatch(name):
            self._changed(own["device"], own["file"], text, name)
        else:
            raise _error(errno.EACCES, name)

    def _changed(self, address: str, file: str, text: str, name: str) -> None:
        if file == "driver_override":
            word = text.split("\n", 1)[0]
            (self.root / name).write_text(f"{word or '(null)'}\n")
        elif file == "reset":
            if text.strip() != "1":
                raise _error(errno.EINVAL, name)
        else:
            driver = self.last(f"{_DEVICES}/{address}/driver")
            if not driver or text.strip() != address:
                raise _error(errno.ENOENT if not driver else errno.ENODEV, name)
            node = f"dev/vfio/{self._group(address)}"
            assert driver != VFIO or node not in self.elsewhere, (
                "the kernel would wait for whoever has it"
            )
            self._detach(address)

    def _bind(self, driver: str, address: str, name: str) -> None:
        if not self.there(f"{_DRIVERS}/{driver}"):
            raise _error(errno.ENOENT, name)
        override = self.read(f"{_DEVICES}/{address}/driver_override")
        fits = override == driver if override != "(null)" else driver != VFIO
        if not self.there(f"{_DEVICES}/{address}") or not fits:
            raise _error(errno.ENODEV, name)
        if self.last(f"{_DEVICES}/{address}/driver"):
            raise _error(errno.EBUSY, name)
        self._attach(address, driver)

    def _attach(self, address: str, driver: str) -> None:
        (self.root / _DEVICES / address / "driver").symlink_to(
            self.root / _DRIVERS / driver
        )
        if driver == VFIO:
            node = f"dev/vfio/{self._group(address)}"
            (self.root / node).touch(0o600)
            self.owners.setdefault(node, (0, 0))

    def _detach(self, address: str) -> None:
        group = self._group(address)
        (self.root / _DEVICES / address / "driver").unlink(missing_ok=True)
        members = self.names(f"sys/kernel/iommu_groups/{group}/devices")
        if not any(self.last(f"{_DEVICES}/{m}/driver") == VFIO for m in members):
            (self.root / f"dev/vfio/{group}").unlink(missing_ok=True)
            self.owners.pop(f"dev/vfio/{group}", None)

    def _group(self, address: str) -> str:
        return self.last(f"{_DEVICES}/{address}/iommu_group")

    # --- nodes

    def own(self, name: str, uid: int, gid: int) -> None:
        if not self.there(name):
            raise _error(errno.ENOENT, name)
        self.owners[name] = (uid, gid)

    def try_open(self, name: str, *, alone: bool = False) -> None:
        if name in self.held_disks or (name in self.elsewhere and not alone):
            raise _error(errno.EBUSY, name)
        if not self.there(name):
            raise _error(errno.ENOENT, name)

    def open_by_others(self, names: list[str]) -> set[str]:
        return self.elsewhere.intersection(names)


def _error(code: int, name: str) -> OSError:
    return OSError(code, os.strerror(code), name)
